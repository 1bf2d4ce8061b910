"""Hashes of numbers and of token sequences, the same on every machine and under every numpy."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64; the fraction of the golden ratio."""


def mix_bits(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64-bit numbers one to one (the finalizer of SplitMix64). Shapes: [n] to [n]."""
    mixed = numbers + np.uint64(BASE)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def polynomials(
    tokens: NDArray[np.integer[Any]], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Compute the polynomial of stretches of tokens, in time linear in the tokens.

    That of a stretch is the sum of mixed token i times BASE^i modulo 2^64, i from 0 at its begin,
    so a stretch in two parts has the first's plus BASE^(length of the first) times the second's.

    Args:
        tokens: Token ids. [s]
        begins: First token of each stretch; stretches may overlap. [n]
        ends: One past the last token of each stretch. [n]

    Returns:
        [n]
    """
    powers = _powers(BASE, len(tokens))
    inverse = _powers(pow(BASE, -1, 1 << 64), len(tokens) + 1)
    sums = np.zeros(len(tokens) + 1, np.uint64)
    np.cumsum(mix_bits(tokens.astype(np.uint64)) * powers, out=sums[1:])
    return (sums[ends] - sums[begins]) * inverse[begins]


def shifted(polynomial: np.uint64, count: int) -> np.uint64:
    """Move a polynomial behind ``count`` tokens."""
    return np.uint64(int(polynomial) * pow(BASE, count, 1 << 64) % (1 << 64))


@lru_cache(maxsize=4)
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)
