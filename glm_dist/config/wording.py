"""Numbers that an error message can propose instead of a wrong one, and how it lists them."""

from collections.abc import Sequence


def multiples(number: int, unit: int) -> tuple[int, int]:
    """The multiples of ``unit`` below and above a number."""
    return number // unit * unit, -(-number // unit) * unit


def divisors(number: int) -> list[int]:
    """Every divisor, rising."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def either(choices: Sequence[int]) -> str:
    """Numbers as "1, 2 or 4"."""
    if len(choices) == 1:
        return str(choices[0])
    return f"{', '.join(str(choice) for choice in choices[:-1])} or {choices[-1]}"
