"""Documents of any size in bounded memory: encoded in parts, cut where no token spans the cut.

The libraries take 30 to 155 bytes of memory a character. A cut is made only where encoding a few
hundred characters around it gives the same ids with and without the cut.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

PART_CHARACTERS = 1 << 20
"""Most characters encoded at a time, where there are places to cut."""

CONTEXT_CHARACTERS = 256
"""Characters on both sides of a cut that are encoded to test it."""

MOST_TESTS = 32
"""Places of each kind that are tested before the text is encoded in one piece."""

Encode = Callable[[str], NDArray[np.int32]]


def encode_long(encode: Encode, text: str) -> NDArray[np.int32]:
    """Encode a text.

    Args:
        encode: Encodes a text of any length.
        text: Not empty.
    """
    if len(text) <= PART_CHARACTERS:
        return encode(text)
    return np.concatenate([encode(part) for part in _parts(encode, text)])


def _parts(encode: Encode, text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > PART_CHARACTERS:
        cut = _cut(encode, text, begin + PART_CHARACTERS // 2, begin + PART_CHARACTERS)
        if cut is None:
            break
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _cut(encode: Encode, text: str, first: int, last: int) -> int | None:
    """Find the last safe place between two positions: behind a line end, else before a space."""
    for mark, offset in (("\n", 1), (" ", 0)):
        end = last
        for _ in range(MOST_TESTS):
            place = text.rfind(mark, first, end)
            if place < 0:
                break
            if _is_safe(encode, text, place + offset):
                return place + offset
            end = place
    return None


def _is_safe(encode: Encode, text: str, cut: int) -> bool:
    left = text[max(0, cut - CONTEXT_CHARACTERS) : cut]
    right = text[cut : cut + CONTEXT_CHARACTERS]
    return np.array_equal(encode(left + right), np.concatenate([encode(left), encode(right)]))
