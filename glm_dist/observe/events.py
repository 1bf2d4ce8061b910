"""``events.jsonl``: everything that happened to a run, one line per event, over all attempts.

Every line has ``step``, ``kind``, ``attempt``, ``time`` (seconds since 1970) and ``details``.
It has no metrics, and it keeps the events of steps that were repeated later.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from glm_dist.observe.metrics_file import Record, encode, finite_or_text, repair_last_line

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"

_FIELDS = {"step": int, "kind": str, "attempt": int, "time": int | float, "details": dict}


class EventsSink:
    """Sink for events; see ``MetricSink``. An event is on the disk before the next one."""

    def __init__(
        self,
        path: Path,
        *,
        attempt: int,
        first_step: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin an attempt.

        Args:
            path: Created if it does not exist; its folder does.
            attempt: Number of this start of the run, from 1.
            first_step: Steps done before.
            clock: Seconds since 1970.
        """
        self._path = path
        self._attempt = attempt
        self._clock = clock
        self._has_failed = False
        self.event(first_step, "started", {})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing: metrics are in ``metrics.jsonl``."""

    def event(self, step: int, kind: str, details: Mapping[str, str | float]) -> None:
        """Append an event; like every sink, log a failure once instead of raising."""
        line = encode(
            {
                "step": step,
                "kind": kind,
                "attempt": self._attempt,
                "time": round(self._clock(), 3),
                "details": finite_or_text(details),
            }
        )
        try:
            repair_last_line(self._path)
            with self._path.open("ab", buffering=0) as stream:
                written = stream.write(line)
                os.fsync(stream.fileno())
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes written")
        except OSError as error:
            if not self._has_failed:
                log.error("could not write events path=%s reason=%s", self._path, error)
            self._has_failed = True

    def close(self) -> None:
        """Do nothing: no file is open."""


def read_events(path: Path) -> list[Record]:
    """Read every event in the order written; a partial last line is left out."""
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def sound_events(path: Path) -> Iterator[Record]:
    """Yield the events line by line, without damaged lines; nothing if there is no file."""
    try:
        with path.open("rb") as stream:
            for line in stream:
                event = _event_of(line)
                if event is not None:
                    yield event
    except FileNotFoundError:
        return


def _event_of(line: bytes) -> Record | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict):
        return None
    is_sound = all(isinstance(event.get(name), kind) for name, kind in _FIELDS.items())
    return event if is_sound else None
