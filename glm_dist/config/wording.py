"""Numbers that an error message can propose instead of a wrong one, and how it lists them."""

import math
from collections.abc import Sequence

LARGEST_TRIED = 100_000
"""Largest divisor that is tried; the search is complete for numbers up to its square."""


def positive_multiples(number: int, unit: int) -> list[int]:
    """The multiples of ``unit`` next to a number: the one below, if above 0, and the one above."""
    return [multiple for multiple in (number // unit * unit, -(-number // unit) * unit) if multiple]


def divisors(number: int) -> list[int]:
    """Divisors, rising: 1, the number itself and, up to 10^10, every other one.

    A mistyped number may be of any size and is answered at once all the same, so of larger ones
    those are missing that lie, with their cofactor, beyond ``LARGEST_TRIED``.
    """
    tried = range(1, min(math.isqrt(number), LARGEST_TRIED) + 1)
    small = [candidate for candidate in tried if number % candidate == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def either(choices: Sequence[int]) -> str:
    """Numbers as "1, 2 or 4"."""
    if len(choices) == 1:
        return str(choices[0])
    return f"{', '.join(str(choice) for choice in choices[:-1])} or {choices[-1]}"
