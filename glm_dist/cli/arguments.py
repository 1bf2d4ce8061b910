"""Kinds of command-line values that several commands take."""

import argparse
from collections.abc import Callable


def whole_number(*, at_least: int) -> Callable[[str], int]:
    """Make a ``type`` for argparse.

    Args:
        at_least: Smallest number that is taken.
    """

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = at_least - 1
        if number < at_least:
            message = f"{text!r} is not a whole number of at least {at_least}"
            raise argparse.ArgumentTypeError(message)
        return number

    return read
