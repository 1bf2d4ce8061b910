"""A run's ``metrics.jsonl`` as columns: one per metric, without steps that were repeated later.

A run of weeks has 100,000 lines. They are read in one pass, line by line, and only numbers stay.
"""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm_dist.observe.goodput import Attempt, read_attempts
from glm_dist.observe.goodput_meter import add_signs_of_life
from glm_dist.observe.metrics_file import (
    METRICS_FILE,
    REWOUND,
    STARTED,
    Record,
    final_records,
    record_of,
)

NOT_METRICS = frozenset({"step", "attempt", "time"})

MOST = 2**53
"""Integers below it are exact in floating point and in a browser."""

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


@dataclass(frozen=True)
class Column:
    """One metric: its records in the order of their steps, each step once."""

    steps: NDArray[np.int64]
    times: NDArray[np.float64]
    """Seconds since 1970."""
    values: NDArray[np.float64]
    """Those that are not finite are NaN."""
    means: NDArray[np.float64] | None = None
    """Of a thinned column: the mean of the part that a record comes from."""

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.steps)


@dataclass
class History:
    """Everything that a run has recorded."""

    columns: dict[str, Column] = field(default_factory=dict)
    """By metric."""
    events: list[Record] = field(default_factory=list)
    """Event lines of all attempts, in the order written."""
    attempts: list[Attempt] = field(default_factory=list)
    """For goodput; see there."""
    end: int = 0
    """Bytes of the complete lines."""


def read_history(folder: Path) -> History:
    """Read the records of a run; an empty history if there are none.

    Damaged lines are left out, and so is a last line that is still being written.

    Args:
        folder: The run folder.
    """
    history, builder = History(), _Builder()
    history.attempts = read_attempts(_lines(folder / METRICS_FILE, history, builder))
    add_signs_of_life(history.attempts, folder)
    history.columns = builder.columns()
    return history


def records_from(path: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """Yield each record behind an offset, and the offset behind its line.

    Args:
        path: ``metrics.jsonl``; may be missing.
        offset: Bytes to pass over; the beginning of a line.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                record = sound(record_of(line))
                if record is not None:
                    yield record, offset
    except FileNotFoundError:
        return


def sound(record: Record | None) -> Record | None:
    """Return a record without fields of a wrong type; None if step, attempt or time is wrong."""
    if record is None or not (_is_count(record["step"]) and _is_count(record["attempt"])):
        return None
    if not _is_finite(record.setdefault("time", 0.0)):
        return None
    for name in ("process_started", "seconds"):
        if name in record and not _is_finite(record[name]):
            del record[name]
    phases = record.get("phase_seconds", {})
    if not isinstance(phases, dict) or not all(map(_is_finite, phases.values())):
        del record["phase_seconds"]
    return record


def metrics_in(record: Record) -> Iterator[tuple[str, float]]:
    """Yield the metrics of a line; NaN for every value that is not finite. Events have none."""
    if "event" in record:
        return
    for name, value in record.items():
        if name in NOT_METRICS:
            continue
        if _is_finite(value):
            yield name, float(value)
        elif value in _NOT_FINITE:
            yield name, math.nan


def thin(column: Column, most: int) -> Column:
    """Leave out records between others, but never the extremes: what a picture shows stays.

    Args:
        column: One metric.
        most: Records that may stay; at least 4.

    Returns:
        The least and the greatest value of each of ``most / 2 - 1`` equal parts, and the first and
        the last record; with the means of the parts, to be averaged instead of the extremes.
    """
    count = len(column)
    if count <= most:
        return column
    values = column.values
    parts = np.linspace(0, count, most // 2, dtype=np.int64)
    low = np.where(np.isnan(values), np.inf, values)
    high = np.where(np.isnan(values), -np.inf, values)
    kept = {0, count - 1}
    for begin, end in zip(parts[:-1].tolist(), parts[1:].tolist(), strict=True):
        kept.add(begin + int(low[begin:end].argmin()))
        kept.add(begin + int(high[begin:end].argmax()))
    places = np.array(sorted(kept), np.int64)
    sums = np.add.reduceat(np.where(np.isnan(values), 0.0, values), parts[:-1])
    finite = np.add.reduceat(~np.isnan(values), parts[:-1], dtype=np.int64)
    means = np.where(finite > 0, sums / np.maximum(finite, 1), np.nan)
    part = np.searchsorted(parts, places, side="right") - 1
    return Column(column.steps[places], column.times[places], values[places], means[part])


class _Builder:
    """Collects numbers while the file is read."""

    def __init__(self) -> None:
        self._records: list[Record] = []  # without their metrics
        self._times = array("d")
        self._rows: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}

    def add(self, record: Record) -> None:
        """Add a line."""
        row = len(self._records)
        slim = {"step": record["step"], "attempt": record["attempt"], "row": row}
        if "event" in record:
            slim["event"] = record["event"]
        self._records.append(slim)
        self._times.append(record["time"])
        for name, value in metrics_in(record):
            self._rows.setdefault(name, array("q")).append(row)
            self._values.setdefault(name, array("d")).append(value)

    def columns(self) -> dict[str, Column]:
        """Return the columns, in the order in which their metrics first appeared."""
        kept = [record["row"] for record in final_records(self._records)]
        rank = np.full(len(self._records), -1, np.int64)
        rank[kept] = np.arange(len(kept))
        steps = np.array([record["step"] for record in self._records], np.int64)
        times = np.array(self._times, np.float64)
        found = {}
        for name, listed in self._rows.items():
            rows = np.array(listed, np.int64)
            values = np.array(self._values[name], np.float64)
            order = np.argsort(rank[rows], kind="stable")
            order = order[rank[rows[order]] >= 0]
            of_step = steps[rows[order]]
            # A step that was recorded twice: the later record stays.
            is_last = np.append(of_step[1:] != of_step[:-1], True)[: len(order)]
            places = order[is_last]
            if len(places):
                found[name] = Column(steps[rows[places]], times[rows[places]], values[places])
        return found


def _lines(path: Path, history: History, builder: _Builder) -> Iterator[Record]:
    """Yield the lines, and collect on the way."""
    for record, end in records_from(path, 0):
        history.end = end
        builder.add(record)
        if "event" in record:
            history.events.append(record)
        yield record


def rewrites_history(record: Record) -> bool:
    """Return True for an event after which earlier records may no longer count."""
    return record.get("event") in (STARTED, REWOUND)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST


def _is_finite(value: object) -> bool:
    if type(value) is int:
        return abs(value) < MOST
    return type(value) is float and math.isfinite(value)
