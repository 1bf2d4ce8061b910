"""Random numbers with a name: every draw is a function of (seed, purpose, place).

Only uniform doubles are taken from numpy's generators (``Generator.random``): unlike its integer
and permutation methods they are one fixed function of the Philox bits, so a row stays the same
under every version of numpy.
"""

from enum import IntEnum

import numpy as np
from numpy.random import Generator, Philox


class Purpose(IntEnum):
    """Purpose of a draw; draws for different purposes are independent."""

    TRAINING_ROW = 1
    VALIDATION_ROW = 2
    SURVEY = 3


class RowGenerators:
    """Generators of rows, one at a time.

    Making a Philox object takes longer than all the draws of a row, so one is set to the place of
    each row instead. A generator is good until the next one is asked for.
    """

    def __init__(self, seed: int, purpose: Purpose) -> None:
        """Fix what all rows share.

        Args:
            seed: Seed of the run, 0 to 2**64 - 1.
            purpose: What the draws are for.
        """
        # An explicit type: a list with a number beyond 2**63 would become floats.
        self._bits = Philox(key=np.array([seed, int(purpose)], np.uint64))
        self._state = self._bits.state
        self._generator = Generator(self._bits)

    def at(self, *, corpus: int, epoch: int, slot: int) -> Generator:
        """Give the generator of one row.

        Philox is a counter encrypted with a key: other counters or keys, other numbers. The row
        owns the lowest word of the counter, 2**64 blocks of four numbers.

        Args:
            corpus: Key of the corpus (``name_key``).
            epoch: Pass over the corpus.
            slot: Window within the pass.
        """
        self._state["state"]["counter"][:] = (0, slot, epoch, corpus)
        self._bits.state = self._state
        return self._generator

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by what it was made of."""
        seed, purpose = self._state["state"]["key"].tolist()
        return (RowGenerators, (seed, Purpose(purpose)))


def draw_below(rng: Generator, bound: int) -> int:
    """Draw a uniform integer from 0 to ``bound`` - 1; ``bound`` is far below 2**53."""
    return int(rng.random() * bound)
