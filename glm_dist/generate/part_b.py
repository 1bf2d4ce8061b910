"""Inputs and position ids of answers, as a run was trained to write them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glm_dist.config.schema import PretrainingTask, RunConfig
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.errors import DataError
from glm_dist.generate.context import Context


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
        kind = LeftToRight if config.corruption.task is PretrainingTask.causal_lm else PartB
        return kind(
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
