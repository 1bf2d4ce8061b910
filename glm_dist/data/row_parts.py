"""A row taken apart for a person: Part A with its blanks, Part B blank by blank, and who sees whom.

Plain strings and numbers; a terminal and a page draw them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from glm_dist.data.rows import Row, Segment
from glm_dist.data.tokenizer.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A stretch of Part A."""

    text: str
    blank: int | None
    """Number of the blank whose mask it is, from 1 in the order of emission; None: plain text."""


@dataclass(frozen=True)
class Blank:
    """The content of one blank, in Part B."""

    number: int
    """From 1, in the order of emission."""
    position: int
    """First position id of its tokens: the index of its mask in Part A."""
    begin: int
    """Index of its first token in the row."""
    length: int
    """Tokens, which are numbered 1 to ``length`` by the second position id."""
    targets: str
    """Text to predict."""


@dataclass(frozen=True)
class SegmentParts:
    """One segment of a row; a row that is not packed has one."""

    begin: int
    """Index of its first token in the row."""
    segment: Segment
    part_a: tuple[Piece, ...]
    blanks: tuple[Blank, ...]
    """Empty in rows of objectives without blanks."""
    predicted: str
    """Targets of a row without blanks; empty in other rows."""


def segments_of(row: Row) -> tuple[Segment, ...]:
    """Return the segments of any row, in order, without padding."""
    return row.segments or (Segment(row.num_real_tokens, row.prefix_length),)


def take_apart(row: Row, tokenizer: Tokenizer) -> list[SegmentParts]:
    """Take a row apart.

    Args:
        row: Finished row.
        tokenizer: Turns ids into text.
    """
    parts, begin = [], 0
    for segment in segments_of(row):
        parts.append(_segment(row, begin, segment, tokenizer))
        begin += segment.length
    return parts


def _segment(row: Row, begin: int, segment: Segment, tokenizer: Tokenizer) -> SegmentParts:
    end, middle = begin + segment.length, begin + segment.prefix_length
    starts = [i for i in range(middle, end) if row.block_positions[i] == 1]
    numbers = {int(row.positions[start]): number for number, start in enumerate(starts, 1)}
    pieces: list[Piece] = []
    run: list[int] = []
    for index in range(begin, middle):
        number = numbers.get(int(row.positions[index])) if starts else None
        if number is None:
            run.append(int(row.tokens[index]))
            continue
        pieces += [
            Piece(tokenizer.decode(run), None),
            Piece(tokenizer.decode([int(row.tokens[index])]), number),
        ]
        run = []
    pieces.append(Piece(tokenizer.decode(run), None))
    ends = [*starts[1:], end] if starts else []
    blanks = tuple(
        Blank(
            number,
            position=int(row.positions[start]),
            begin=start,
            length=int(row.block_positions[start:stop].max()),
            targets=tokenizer.decode(row.targets[start:stop].tolist()),
        )
        for number, (start, stop) in enumerate(zip(starts, ends, strict=True), 1)
    )
    predicted = "" if blanks else _predicted(row, begin, end, tokenizer)
    return SegmentParts(begin, segment, tuple(pieces), blanks, predicted)


def _predicted(row: Row, begin: int, end: int, tokenizer: Tokenizer) -> str:
    scored = begin + np.flatnonzero(row.loss_mask[begin:end])
    return tokenizer.decode(row.targets[scored].tolist()) if len(scored) else ""
