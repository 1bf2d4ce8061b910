"""Tokenizers of GLM for transformers 4.46 to 5, and the input builders of its models.

Part of an exported model folder: transformers loads it there with trust_remote_code=True. The ids
of all special tokens are in ``special_ids`` of tokenizer_config.json; a special token's name in a
text becomes its id. [CLS] opens a text. The end token, which is also the padding token, closes it,
unless the text ends in the mask of an open tail ([gMASK], or [MASK] where there is no other).
"""

import importlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizer

MASKS = ("[MASK]", "[gMASK]", "[sMASK]")
SOP = "<|startofpiece|>"
EOP = "<|endofpiece|>"
IGNORED = -100


class GLMTokenizer(PreTrainedTokenizer):
    """Special tokens and input builders; subclasses read a vocabulary."""

    vocab_files_names = {"vocab_file": "vocab.txt"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "right"
    truncation_side = "left"
    masks_eat_space = True
    separator = ""

    def __init__(self, special_ids: dict[str, int], **kwargs: Any) -> None:
        """Keep the special tokens.

        Args:
            special_ids: Id by name.
            **kwargs: Of the base class, with the names of files.
        """
        self.special_ids = dict(special_ids)
        self._special_names = {number: name for name, number in special_ids.items()}
        self._files = [kwargs[key] for key in self.vocab_files_names]
        self._pieces = self._read(*map(Path, self._files))
        tokens = dict(enumerate(self._pieces)) | self._special_names
        self._vocabulary = {token: number for number, token in tokens.items()}
        super().__init__(special_ids=special_ids, **kwargs)

    def _read(self, *files: Path) -> list[str]:
        """Read the vocabulary. Returns its pieces by id."""
        raise NotImplementedError

    def _encode_ordinary(self, text: str) -> list[int]:
        """Encode text without special tokens."""
        raise NotImplementedError

    def _decode_ordinary(self, ids: list[int], *, continues: bool) -> str:
        """Decode ids that are no special tokens."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Ids, special tokens included, before the model's table is padded."""
        return max(len(self._pieces), *(number + 1 for number in self._special_names))

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token."""
        return self._vocabulary | self.get_added_vocab()

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Split a text into tokens; nothing is added around it.

        Args:
            text: Names of special tokens in it become those tokens.
            **kwargs: split_special_tokens=True takes such names for ordinary words.
        """
        if kwargs.get("split_special_tokens", False):
            return self._tokenize(text)
        names = sorted({*self.special_ids, *self.get_added_vocab()}, key=len, reverse=True)
        alternatives = [
            (r"\s*" if self.masks_eat_space and name in MASKS else "") + re.escape(name)
            for name in names
        ]
        tokens: list[str] = []
        for number, part in enumerate(re.split(f"({'|'.join(alternatives)})", text)):
            tokens.extend([part.strip()] if number % 2 else self._tokenize(part))
        return tokens

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        ids = self._encode_ordinary(text) if text.strip() else []
        return [self._convert_id_to_token(number) for number in ids]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._vocabulary.get(token, self.special_ids.get("[UNK]"))

    def _convert_id_to_token(self, index: int) -> str:
        if index in self._special_names:
            return self._special_names[index]
        return self._pieces[index] if 0 <= index < len(self._pieces) else f"<|{index}|>"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to a text."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _decode(
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(map(int, token_ids))
        added = {number: name for name, number in self.get_added_vocab().items()}
        named = added | self._special_names
        parts: list[str] = []
        run: list[int] = []
        for number in [*ids, None]:
            if number is not None and number not in named and 0 <= number < len(self._pieces):
                run.append(number)
                continue
            if run:
                parts.append(self._decode_ordinary(run, continues=bool(parts)))
                run = []
            if number is not None and not (skip_special_tokens and number in named):
                parts.append(named.get(number, f"<|{number}|>"))
        return self.separator.join(parts)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put [CLS] before a text and the end token behind it, [SEP] between two."""
        ids = list(token_ids_0)
        if token_ids_1 is not None:
            ids += [self.sep_token_id, *token_ids_1]
        is_open = bool(ids) and ids[-1] == self.special_ids.get("[gMASK]", self.mask_token_id)
        return [self.cls_token_id, *ids, *([] if is_open else [self.eos_token_id])]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for special tokens, 0 for the others."""
        ids = token_ids_0
        if not already_has_special_tokens:
            ids = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return [int(number in self._special_names) for number in ids]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return zeros: GLM has no token types."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copy the vocabulary's files."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        copies = []
        for file, name in zip(self._files, self.vocab_files_names.values(), strict=True):
            copy = Path(save_directory) / (prefix + name)
            if copy.resolve() != Path(file).resolve():
                shutil.copyfile(file, copy)
            copies.append(str(copy))
        return tuple(copies)

    @property
    def sop_token(self) -> str:
        """First input of a blank."""
        return SOP

    @property
    def sop_token_id(self) -> int:
        """Id of ``sop_token``."""
        return self.special_ids[SOP]

    @property
    def eop_token(self) -> str:
        """End of a blank."""
        return EOP

    @property
    def eop_token_id(self) -> int:
        """Id of ``eop_token``."""
        return self.special_ids[EOP]

    @property
    def gmask_token_id(self) -> int:
        """Id of [gMASK], for long text at the end."""
        return self._task_mask("[gMASK]")

    @property
    def smask_token_id(self) -> int:
        """Id of [sMASK], for sentences."""
        return self._task_mask("[sMASK]")

    @property
    def mask_token_ids(self) -> list[int]:
        """Ids of all masks."""
        return [self.special_ids[name] for name in MASKS if name in self.special_ids]

    def _task_mask(self, name: str) -> int:
        if name not in self.special_ids:
            raise NotImplementedError(f"the model has no {name}; write [MASK]")
        return self.special_ids[name]

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
        positions = torch.zeros(b, 2, s + g, dtype=torch.long)
        positions[:, 0, :s] = torch.arange(s)
        positions[:, 0, s:] = torch.tensor(places)[:, None]
        positions[:, 1, s:] = torch.arange(1, g + 1)
        mask = torch.zeros(b, 1, s + g, s + g, dtype=torch.long)
        mask[..., :s] = seen[:, None, None]
        mask[..., s:, s:] = torch.ones(g, g, dtype=torch.long).tril()
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
        answer_inputs = torch.full((b, g), self.pad_token_id)
        answer_inputs[:, :1] = start
        for row, answer in enumerate(answers):
            labels[row, s : s + len(answer)] = torch.tensor(answer)
            answer_inputs[row, 1 : len(answer)] = torch.tensor(answer[:-1])
        inputs = torch.cat([context, answer_inputs], 1)
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


def _rows(model_input: BatchEncoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [b, s] of encoded texts, and 1 where they are no padding."""
    ids = torch.as_tensor(model_input["input_ids"])
    seen = torch.as_tensor(model_input.get("attention_mask", torch.ones_like(ids)))
    return torch.atleast_2d(ids).cpu(), torch.atleast_2d(seen).cpu()


class _LibraryTokenizer(GLMTokenizer):
    """A vocabulary of the tokenizers library."""

    def _build(self, *files: Path) -> tokenizers.Tokenizer:
        raise NotImplementedError

    def _read(self, *files: Path) -> list[str]:
        self._codec = self._build(*files)
        by_id = {number: piece for piece, number in self._codec.get_vocab().items()}
        return [by_id.get(number, f"<|{number}|>") for number in range(max(by_id) + 1)]

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._codec.encode(text, add_special_tokens=False).ids

    def _decode_ordinary(self, ids: list[int], *, continues: bool) -> str:
        return self._codec.decode(ids, skip_special_tokens=False)


class GLMBertTokenizer(_LibraryTokenizer):
    """Uncased WordPiece of BERT."""

    masks_eat_space = False
    separator = " "

    def _build(self, vocabulary: Path) -> tokenizers.Tokenizer:
        lines = vocabulary.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
        ids = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
        codec = tokenizers.Tokenizer(
            models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)
        )
        codec.normalizer = normalizers.BertNormalizer(lowercase=True)
        codec.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        codec.decoder = decoders.WordPiece()
        return codec


class GLMGPT2Tokenizer(_LibraryTokenizer):
    """Byte-level BPE of GPT-2."""

    vocab_files_names = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}  # noqa: RUF012

    def _build(self, vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
        codec = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
        codec.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        codec.decoder = decoders.ByteLevel()
        return codec


class GLMRobertaTokenizer(GLMGPT2Tokenizer):
    """Byte-level BPE with RoBERTa's ids; <s>, </s> and <mask> are called as in the other GLMs."""


class GLMSentencePieceTokenizer(GLMTokenizer):
    """One's own SentencePiece model."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012

    def _read(self, model: Path) -> list[str]:
        # Not imported above: other GLMs need no such library.
        library = importlib.import_module("sentencepiece")
        self._codec = library.SentencePieceProcessor(model_file=str(model))
        return [self._codec.id_to_piece(n) for n in range(self._codec.get_piece_size())]

    def _encode_ordinary(self, text: str) -> list[int]:
        return self._codec.encode(text)

    def _decode_ordinary(self, ids: list[int], *, continues: bool) -> str:
        text = self._codec.decode(ids)
        # The model drops the first space of whatever it decodes.
        begins_word = self._pieces[ids[0]].startswith("▁")
        return f" {text}" if continues and begins_word and not text.startswith(" ") else text


class GLMChineseTokenizer(GLMSentencePieceTokenizer):
    """The SentencePiece model of the Chinese GLMs."""

    vocab_files_names = {"vocab_file": "cog-pretrain.model"}  # noqa: RUF012
