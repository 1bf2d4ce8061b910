"""Inputs and position ids of answers, as a run was trained to write them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from glm_dist.config.schema import PretrainingTask, RunConfig
from glm_dist.data.objectives.base import Blanks
from glm_dist.data.objectives.baselines import mask_in_place, write_after_sentinels
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.errors import DataError
from glm_dist.generate.context import Context

ANSWER = "task"
"""Name of rows with answers in metrics."""


@dataclass(frozen=True)
class PartB:
    """Blank infilling: an answer starts from [sop] at the position of its mask."""

    special: SpecialTokens
    max_position: int
    """Largest position id the model knows (P)."""
    sentinels: bool = False
    """Blanks after the first have their own [sop] and share the position P."""
    no_block_positions: bool = False
    """Every second position is 1."""

    @staticmethod
    def of(config: RunConfig, special: SpecialTokens) -> "PartB":
        """Take from a run's configuration how its rows were laid out."""
        return KINDS[config.corruption.task](
            special,
            max_position=config.model.max_position_embeddings,
            sentinels=config.corruption.sentinels,
            no_block_positions=config.corruption.no_block_positions,
        )

    def begin(self, context: Sequence[int]) -> Context:
        """Return what is read before the first input of an answer."""
        return Context.of_part_a(context)

    def first(self, context: Sequence[int], number: int) -> int:
        """Return the first input of an answer.

        Args:
            context: Token ids of the context.
            number: Number of the blank, counted from 0 in the order of emission.
        """
        if not self.sentinels or number == 0:
            return self.special.sop
        return int(self.special.sentinel_sop(np.array(number - 1)))

    def positions(self, mask_index: int, step: int) -> tuple[int, int]:
        """Return both position ids of an input.

        Args:
            mask_index: Index of the blank's mask in the context.
            step: 1 for the first input, 2 for the first token of the answer, …
        """
        position = self.max_position if self.sentinels else mask_index
        return position, 1 if self.no_block_positions else step

    def longest(self, context: Sequence[int]) -> int:
        """Return the tokens of an answer for which there are position ids."""
        return self.max_position - 1

    def lay_out(
        self, context: Sequence[int], blanks: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> Row:
        """Lay out a context with answers in its blanks, with the loss on the answers, unpadded.

        Args:
            context: Token ids of the context.
            blanks: Index of each blank's mask in the context, in the order of emission. [n]
            answers: Targets of each blank, ``end`` included where it counts; empty: the blank
                stays open. [n]
        """
        part_a = self.begin(context)
        tokens, targets = list(part_a.tokens), list(part_a.tokens)
        places = list(zip(part_a.positions, part_a.block_positions, strict=True))
        begin = len(tokens)
        for number, (mask_index, answer) in enumerate(zip(blanks, answers, strict=True)):
            if not answer:
                continue
            tokens += [self.first(context, number), *answer[:-1]]
            targets += answer
            places += [self.positions(mask_index, step) for step in range(1, len(answer) + 1)]
        positions, block_positions = np.array(places, np.int64).reshape(-1, 2).T
        return Row(
            tokens=np.array(tokens, np.int64),
            positions=positions,
            block_positions=block_positions,
            targets=np.array(targets, np.int64),
            loss_mask=np.arange(len(tokens)) >= begin,
            prefix_length=part_a.prefix_length,
            objective=ANSWER,
            num_real_tokens=len(tokens),
        )

    @property
    def open_end(self) -> list[int]:
        """Tokens at the end of a context that is continued."""
        return [self.special.gmask]

    @property
    def end(self) -> int:
        """Token that closes an answer in training."""
        return self.special.eop

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return tuple(sorted({self.end, self.special.eos}))


class LeftToRight(PartB):
    """Causal language modelling: an answer continues the context, whose last token comes first.

    The "mask" of the context is that last token.
    """

    def begin(self, context: Sequence[int]) -> Context:
        """See ``PartB``."""
        tokens = list(context[:-1])
        return Context(tokens, list(range(len(tokens))), [0] * len(tokens), prefix_length=0)

    def first(self, context: Sequence[int], number: int) -> int:
        """See ``PartB``."""
        return context[-1]

    def positions(self, mask_index: int, step: int) -> tuple[int, int]:
        """See ``PartB``."""
        return mask_index + step - 1, 0

    def longest(self, context: Sequence[int]) -> int:
        """See ``PartB``."""
        return self.max_position + 1 - len(context)

    @property
    def open_end(self) -> list[int]:
        """See ``PartB``."""
        return []

    @property
    def end(self) -> int:
        """See ``PartB``."""
        return self.special.eos


class InPlace(PartB):
    """Masked language modelling: an answer is predicted in place of one [MASK] for each token.

    All its tokens are predicted side by side, none of them sees another, and no token ends them.
    Such a run writes nothing by itself; see ``prompt.check_writes``.
    """

    def longest(self, context: Sequence[int]) -> int:
        """See ``PartB``."""
        return self.max_position + 1 - len(context)

    def lay_out(
        self, context: Sequence[int], blanks: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> Row:
        """See ``PartB``."""
        ends = (self.special.eop, self.special.eos)
        bare = [answer[:-1] if answer[-1:] and answer[-1] in ends else answer for answer in answers]
        text, hidden = _filled(context, blanks, bare)
        masked = np.zeros(len(text), np.bool_)
        for start, length in zip(hidden.starts, hidden.lengths, strict=True):
            masked[start : start + length] = True
        return mask_in_place(text, masked, self.special, ANSWER)


class AfterSentinel(PartB):
    """Span corruption: the blank is a sentinel, which is repeated in front of the answer.

    The repeated sentinel is read and not scored: it says nothing about the answer.
    """

    def longest(self, context: Sequence[int]) -> int:
        """See ``PartB``."""
        return self.max_position - 1 - len(context)

    def lay_out(
        self, context: Sequence[int], blanks: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> Row:
        """See ``PartB``."""
        closes = any(answer[-1:] and answer[-1] == self.end for answer in answers)
        bare = [answer[:-1] if closes else answer for answer in answers]
        text, hidden = _filled(context, blanks, bare)
        row = write_after_sentinels(text, hidden, self.special, ANSWER)
        sentinels = self.special.sentinel_mask(np.arange(len(blanks)))
        scored = row.loss_mask & ~np.isin(row.targets, sentinels)
        if closes:
            return replace(row, loss_mask=scored)
        return _cut(replace(row, loss_mask=scored), row.num_real_tokens - 1)


KINDS: Mapping[PretrainingTask, type[PartB]] = {
    PretrainingTask.blank_infilling: PartB,
    PretrainingTask.causal_lm: LeftToRight,
    PretrainingTask.masked_lm: InPlace,
    PretrainingTask.unilm: InPlace,  # its view of both sides, a third of its rows
    PretrainingTask.span_corruption: AfterSentinel,
}


def _filled(
    context: Sequence[int], blanks: Sequence[int], answers: Sequence[Sequence[int]]
) -> tuple[NDArray[np.int64], Blanks]:
    """Put answers in the place of their masks; also give the spans that they cover there."""
    text: list[int] = []
    starts, lengths = [], []
    done = 0
    for mask_index, answer in sorted(zip(blanks, answers, strict=True)):
        if not answer:
            continue
        text += context[done:mask_index]
        starts.append(len(text))
        lengths.append(len(answer))
        text += answer
        done = mask_index + 1
    text += context[done:]
    return np.array(text, np.int64), Blanks(np.array(starts, np.int64), np.array(lengths, np.int64))


def _cut(row: Row, length: int) -> Row:
    """Return the first tokens of an unpadded row."""
    return replace(
        row,
        tokens=row.tokens[:length],
        positions=row.positions[:length],
        block_positions=row.block_positions[:length],
        targets=row.targets[:length],
        loss_mask=row.loss_mask[:length],
        num_real_tokens=length,
    )


def check_length(context: Sequence[int], part_b: PartB) -> None:
    """Refuse a context that is longer than the model's positions.

    Raises:
        DataError: It is.
    """
    room = part_b.max_position + 1
    if len(context) > room:
        raise DataError(
            f"The text has {len(context)} tokens, more than the {room} positions of the model.\n"
            "  Shorten it.",
            key="text",
            value=len(context),
            fix="",
        )
