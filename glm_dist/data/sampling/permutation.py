"""A shuffle without a table: the keyed permutation of 0 … size - 1 with random access.

A Feistel network on a × b cells, the least rectangle that holds ``size``: each round adds to one
coordinate a hash of the other, which can be undone whatever the hash. The few cells beyond ``size``
are skipped by walking on along their cycle.
"""

import math
from dataclasses import dataclass

WORD = (1 << 64) - 1


@dataclass(frozen=True)
class KeyedPermutation:
    """A permutation chosen by its keys."""

    size: int
    keys: tuple[int, ...]
    """64-bit keys, an even number of rounds."""

    def __call__(self, index: int) -> int:
        """Give the place of an index, 0 to size - 1."""
        rows = max(1, math.isqrt(self.size - 1) + 1)
        columns = -(-self.size // rows)
        while True:
            row, column = divmod(index, columns)
            for key_of_row, key_of_column in zip(self.keys[::2], self.keys[1::2], strict=True):
                row = (row + _mix(column ^ key_of_row)) % rows
                column = (column + _mix(row ^ key_of_column)) % columns
            index = row * columns + column
            if index < self.size:
                return index


def _mix(word: int) -> int:
    """Scatter 64 bits (the finaliser of SplitMix64)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    return word ^ (word >> 31)
