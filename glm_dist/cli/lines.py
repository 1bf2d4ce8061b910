"""Texts of a command line or of standard input, as many at a time as are waiting."""

import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

WAIT_SECONDS = 0.02
"""Time in which lines of one batch follow each other."""


PIECE_BYTES = 1 << 16


class Line(NamedTuple):
    """One text as bytes."""

    where: str
    """Place for messages."""
    content: bytes


def batches_of_lines(typed: Sequence[str], size: int) -> Iterator[list[Line]]:
    """Yield texts in batches.

    A batch is full, or holds what has arrived: a program that writes a line and waits for the
    answer gets it.

    Args:
        typed: Texts of the command line; none: lines of standard input.
        size: Texts of a full batch.
    """
    if typed:
        lines = [Line(f"text {n}", os.fsencode(text)) for n, text in enumerate(typed, 1)]
        for begin in range(0, len(lines), size):
            yield lines[begin : begin + size]
        return
    arrived: queue.Queue[Line | None] = queue.Queue(maxsize=4 * size)
    threading.Thread(target=_read_lines, args=(arrived,), daemon=True).start()
    has_ended = False
    while not has_ended:
        batch: list[Line] = []
        line = arrived.get()
        while line is not None:
            batch.append(line)
            if len(batch) == size:
                break
            try:
                line = arrived.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                break
        has_ended = line is None
        if batch:
            yield batch


def _read_lines(arrived: "queue.Queue[Line | None]") -> None:
    """Queue all lines of standard input, then None."""
    number = 0
    parts: list[bytes] = []  # of a line that is not whole yet

    def put() -> None:
        nonlocal number
        number += 1
        arrived.put(Line(f"<stdin>:{number}", b"".join(parts).rstrip(b"\r")))
        parts.clear()

    try:
        for piece in _pieces():
            *ends, rest = piece.split(b"\n")
            for end in ends:
                parts.append(end)
                put()
            if rest:
                parts.append(rest)
        if parts:
            put()
    finally:
        arrived.put(None)


def _pieces() -> Iterator[bytes]:
    """Read standard input without Python's buffer, whose lock must be free when Python ends."""
    try:
        file = sys.stdin.fileno()
    except (OSError, ValueError):  # not a file, as in tests
        yield sys.stdin.buffer.read()
        return
    while piece := os.read(file, PIECE_BYTES):
        yield piece
