"""Inputs of GLM: blanks to generate or to learn, and candidate answers to score.

Part of an exported model folder: its tokenizers have these methods. Letters of shapes: b texts of s
tokens, g inputs of an answer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchEncoding

IGNORED = -100


class GLMInputs:
    """Input builders of a tokenizer."""

    def build_inputs_for_generation(
        self,
        model_input: BatchEncoding,
        max_gen_length: int = 512,
        targets: str | Sequence[str] | None = None,
        padding: bool = False,
    ) -> BatchEncoding:
        """Lay out the first blank of each text, to generate its answer or to learn it.

        Args:
            model_input: Texts, as this tokenizer encodes them; padding is hidden. [b, s]
            max_gen_length: Largest number g of inputs of the answer.
            targets: Answers to learn; unset: one start of piece, for ``generate``.
            padding: With targets, whether all batches have ``max_gen_length`` inputs, not as
                many as the longest answer.

        Returns:
            Without targets input_ids and attention_mask [b, s + 1], position_ids [b, 2, s + g]
            and generation_attention_mask [b, 1, s + g, s + g]; with targets input_ids [b, s + g],
            position_ids, attention_mask [b, 1, s + g, s + g] and labels [b, s + g].

        Raises:
            ValueError: A text has no mask, or there is not one target for each text.
        """
        context, seen = _rows(model_input)
        b, s = context.shape
        places = [self._blank(row, self.mask_token_ids) for row in context.tolist()]
        g = min(max_gen_length, self.model_max_length)
        answers: list[list[int]] = []
        if targets is not None:
            answers = self._answers([targets] if isinstance(targets, str) else targets, g)
            if len(answers) != b:
                raise ValueError(f"{len(answers)} targets for {b} texts; pass one for each")
            g = g if padding else max(map(len, answers))
        positions, mask = _layout(seen, places, g)
        start = torch.full((b, 1), self.sop_token_id)
        if targets is None:
            return BatchEncoding(
                {
                    "input_ids": torch.cat([context, start], 1),
                    # Not used, but without it generate warns that it cannot find the padding.
                    "attention_mask": torch.cat([seen, torch.ones_like(start)], 1),
                    "position_ids": positions,
                    "generation_attention_mask": mask,
                }
            )
        labels = torch.full((b, s + g), IGNORED)
        inputs = torch.cat([context, start, torch.full((b, g - 1), self.pad_token_id)], 1)
        for row, answer in enumerate(answers):
            labels[row, s : s + len(answer)] = torch.tensor(answer)
            inputs[row, s + 1 : s + len(answer)] = torch.tensor(answer[:-1])
        names = ("input_ids", "position_ids", "attention_mask", "labels")
        return BatchEncoding(dict(zip(names, (inputs, positions, mask, labels), strict=True)))

    def _answers(self, targets: Sequence[str], length: int) -> list[list[int]]:
        encoded = [self.convert_tokens_to_ids(self.tokenize(target)) for target in targets]
        return [[*ids, self.eop_token_id][:length] for ids in encoded]

    @staticmethod
    def _blank(row: list[int], masks: Sequence[int]) -> int:
        found = [place for place, token in enumerate(row) if token in masks]
        if not found:
            raise ValueError("a text has no mask token; write [MASK] where the answer belongs")
        return found[0]

    def build_inputs_for_multiple_choice(
        self, model_input: BatchEncoding, choices: Sequence[str] | Sequence[Sequence[str]]
    ) -> BatchEncoding:
        """Lay out candidate answers of [MASK] behind their text; they do not see each other.

        Args:
            model_input: Texts, as this tokenizer encodes them. [b, s]
            choices: Candidates of each text; of one text also a plain list.

        Returns:
            The inputs of ``GLMForMultipleChoice``, without labels.

        Raises:
            ValueError: A text has no [MASK], a candidate is empty, or lists do not fit the texts.
        """
        context, seen = _rows(model_input)
        lists = [choices] if choices and isinstance(choices[0], str) else choices
        if len(lists) != len(context):
            raise ValueError(f"{len(lists)} lists of choices for {len(context)} texts")
        rows = [
            self._choice_row(row[keep.bool()].tolist(), candidates)
            for row, keep, candidates in zip(context, seen, lists, strict=True)
        ]
        n = max(len(row["input_ids"]) for row in rows)
        c = max(len(row["choice_ids"]) for row in rows)
        k = max(len(ids) for row in rows for ids in row["choice_ids"])
        inputs = torch.zeros(len(rows), n, dtype=torch.long)
        positions = torch.zeros(len(rows), 2, n, dtype=torch.long)
        mask = torch.zeros(len(rows), 1, n, n, dtype=torch.long)
        ids = torch.full((len(rows), c, k), IGNORED)
        indices = torch.zeros(len(rows), c, k, dtype=torch.long)
        for number, row in enumerate(rows):
            size = len(row["input_ids"])
            inputs[number, :size] = torch.tensor(row["input_ids"])
            positions[number, :, :size] = torch.tensor(row["position_ids"])
            mask[number, 0, :size, : row["context"]] = 1
            for choice, tokens in enumerate(row["choice_ids"]):
                begin, length = row["begins"][choice], len(tokens)
                end = begin + length
                mask[number, 0, begin:end, begin:end] = torch.ones(length, length).tril().long()
                ids[number, choice, :length] = torch.tensor(tokens)
                indices[number, choice, :length] = torch.arange(begin, end)
        return BatchEncoding(
            {
                "input_ids": inputs,
                "position_ids": positions,
                "attention_mask": mask,
                "choice_ids": ids,
                "choice_indices": indices,
            }
        )

    def _choice_row(self, context: list[int], candidates: Sequence[str]) -> dict[str, Any]:
        place = self._blank(context, [self.mask_token_id])
        inputs, positions = list(context), list(range(len(context)))
        blocks, begins, tokens = [0] * len(context), [], []
        for candidate in candidates:
            ids = self.convert_tokens_to_ids(self.tokenize(candidate))
            if not ids:
                raise ValueError(f"the choice {candidate!r} has no tokens")
            begins.append(len(inputs))
            tokens.append(ids)
            inputs += [self.sop_token_id, *ids[:-1]]
            positions += [place] * len(ids)
            blocks += range(1, len(ids) + 1)
        return {
            "input_ids": inputs,
            "position_ids": [positions, blocks],
            "context": len(context),
            "begins": begins,
            "choice_ids": tokens,
        }


def _layout(seen: torch.Tensor, places: Sequence[int], g: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [b, 2, s + g] and mask [b, 1, s + g, s + g] of an answer behind each text.

    Args:
        seen: 1 where a text is no padding. [b, s]
        places: Index of the blank's mask in each text. [b]
        g: Inputs of an answer.
    """
    b, s = seen.shape
    positions = torch.zeros(b, 2, s + g, dtype=torch.long)
    positions[:, 0, :s] = torch.arange(s)
    positions[:, 0, s:] = torch.tensor(places)[:, None]
    positions[:, 1, s:] = torch.arange(1, g + 1)
    mask = torch.zeros(b, 1, s + g, s + g, dtype=torch.long)
    mask[..., :s] = seen[:, None, None]
    mask[..., s:, s:] = torch.ones(g, g, dtype=torch.long).tril()
    return positions, mask


def _rows(model_input: BatchEncoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [b, s] of encoded texts, and 1 where they are no padding."""
    ids = torch.as_tensor(model_input["input_ids"])
    seen = torch.as_tensor(model_input.get("attention_mask", torch.ones_like(ids)))
    return torch.atleast_2d(ids).cpu(), torch.atleast_2d(seen).cpu()
