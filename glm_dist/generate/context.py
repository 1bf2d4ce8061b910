"""Beginning of a row, before an answer is written."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """Beginning of a row: Part A, and Part B as far as it is known."""

    tokens: list[int]
    positions: list[int]
    block_positions: list[int]
    prefix_length: int
    """Tokens of Part A."""

    @staticmethod
    def of_part_a(tokens: Sequence[int]) -> "Context":
        """Begin a row with Part A alone."""
        length = len(tokens)
        return Context(list(tokens), list(range(length)), [0] * length, length)

    def extended(
        self, tokens: Sequence[int], positions: Sequence[int], block_positions: Sequence[int]
    ) -> "Context":
        """Add tokens of Part B."""
        return Context(
            [*self.tokens, *tokens],
            [*self.positions, *positions],
            [*self.block_positions, *block_positions],
            self.prefix_length,
        )
