"""Goodput while a run is training: metrics, ``goodput.json`` and the summary at the end.

The file is a summary for people and dashboards. It also has each attempt's last sign of life, which
may be later than the attempt's last line in ``metrics.jsonl``; without the file, those lines do.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glm_dist.files import write_atomically
from glm_dist.observe.console import format_duration
from glm_dist.observe.goodput import (
    BUCKETS,
    Attempt,
    Buckets,
    Mark,
    account_attempt,
    account_before,
    add,
    read_attempts,
    useful_share,
)
from glm_dist.observe.metrics import GOODPUT_SECONDS, GOODPUT_SHARE
from glm_dist.observe.metrics_file import METRICS_FILE, sound_records
from glm_dist.observe.phases import PhaseClock

log = logging.getLogger(__name__)

GOODPUT_FILE = "goodput.json"

WRITE_SECONDS = 10.0
"""Shortest time between two writes of the file; each waits for the disk."""


class GoodputMeter:
    """Account of one run's time; on rank 0."""

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int,
        phases: PhaseClock,
        may_write: Callable[[], bool] = lambda: True,
        process_started: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read the earlier attempts and begin this one.

        Args:
            run_dir: The run's folder; ``metrics.jsonl`` has the earlier attempts.
            first_step: Steps done before.
            phases: Clock of the loop, which begins now.
            may_write: Returns False once the folder belongs to another job.
            process_started: Start of this process, in seconds since 1970; None: ask the system.
            clock: Seconds since 1970.
        """
        self._path = run_dir / GOODPUT_FILE
        self._clock = clock
        self._phases = phases
        self._may_write = may_write
        now = clock()
        begun = process_start(now) if process_started is None else process_started
        self._attempt = Attempt(first_step, process_started=begun, loop_started=now)
        self._metrics = run_dir / METRICS_FILE
        self._earlier_signs = _read_signs(self._path)
        earlier = self._read()
        self._num_attempts = sum(not each.is_rest for each in earlier) + 1
        self._before = account_before(earlier, self._attempt)
        self._written = -WRITE_SECONDS
        self._has_failed = False

    @property
    def process_started(self) -> float:
        """Start of this process, in seconds since 1970."""
        return self._attempt.process_started

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds of each phase since the loop began."""
        return {phase: round(x, 3) for phase, x in self._phases.totals().items()}

    def mark(self, step: int, *, is_record: bool = False) -> None:
        """Note that the process is alive after a step.

        Args:
            step: Steps done.
            is_record: Metrics of steps are written.
        """
        step = max(step, self._attempt.last.step)
        mark = Mark(step, self._clock(), self._phases.totals())
        self._attempt.marks.clear()  # only the newest matters while nothing is lost
        self._attempt.add(mark, is_record=is_record)
        if self._phases.now() - self._written >= WRITE_SECONDS:
            self.write()

    def rewound(self) -> None:
        """Count the steps that a rewind has undone as lost, once its event is written."""
        attempts = self._read()
        if attempts and attempts[-1].is_rest:  # not if the disk is full
            self._attempt = attempts.pop()
            self._before = account_before(attempts, self._attempt)

    def _read(self) -> list[Attempt]:
        """Read the attempts so far, in parts between rewinds."""
        attempts = read_attempts(sound_records(self._metrics))
        _add_signs(attempts, self._earlier_signs)
        return attempts

    def alive(self, step: int) -> None:
        """Note that the process is alive after a step, if the file is due.

        Args:
            step: Steps done.
        """
        if self._phases.now() - self._written >= WRITE_SECONDS:
            self.mark(step)

    def buckets(self) -> Buckets:
        """Return the seconds by bucket of all attempts so far."""
        return add(self._before, account_attempt(self._attempt))

    def metrics(self) -> dict[str, float]:
        """Return the account as metrics."""
        buckets = self.buckets()
        seconds = {GOODPUT_SECONDS + name: round(x, 3) for name, x in buckets.items()}
        return {GOODPUT_SHARE: round(useful_share(buckets), 6)} | seconds

    def write(self) -> None:
        """Write the file; a failure is logged once, since training does not depend on it."""
        if not self._may_write():
            return
        buckets, last = self.buckets(), self._attempt.last
        sign = {
            "process_started": round(self.process_started, 3),
            "time": round(last.time, 3),
            "step": last.step,
            "phase_seconds": {phase: round(x, 3) for phase, x in last.seconds.items()},
        }
        content = {
            "step": last.step,
            "attempts": self._num_attempts,
            "wall_seconds": round(sum(buckets.values()), 3),
            "useful_share": round(useful_share(buckets), 6),
            "seconds": {name: round(x, 3) for name, x in buckets.items()},
            "signs_of_life": [*self._earlier_signs, sign],
        }
        self._written = self._phases.now()
        try:
            write_atomically(self._path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            if not self._has_failed:
                log.warning("could not write path=%s reason=%s", self._path, error)
            self._has_failed = True

    def close(self) -> None:
        """Write the file and log the summary."""
        self.mark(self._attempt.last.step)
        self.write()
        log.info("%s", summary(self.buckets(), num_attempts=self._num_attempts))


def add_signs_of_life(attempts: Sequence[Attempt], run_dir: Path) -> None:
    """Add the signs of life in ``goodput.json`` to the attempts of a run, for whoever reads it.

    Args:
        attempts: As ``read_attempts`` returns them.
        run_dir: The run's folder; the file may be missing.
    """
    _add_signs(attempts, _read_signs(run_dir / GOODPUT_FILE))


def _read_signs(path: Path) -> list[dict[str, Any]]:
    """Read the last sign of life of each attempt; none if the file is missing or damaged."""
    try:
        signs = json.loads(path.read_text(encoding="utf-8"))["signs_of_life"]
        return [
            each
            for each in signs
            if all(isinstance(each[name], float | int) for name in ("process_started", "time"))
            and isinstance(each["step"], int)
            and isinstance(each["phase_seconds"], dict)
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _add_signs(attempts: Sequence[Attempt], signs: Sequence[Mapping[str, Any]]) -> None:
    """Add signs of life to the attempts that they belong to, if they are later than their lines."""
    by_start = {round(each.process_started, 3): each for each in attempts}
    for sign in signs:
        attempt = by_start.get(sign["process_started"])
        if attempt is None or sign["time"] <= attempt.last.time:
            continue
        if sign["step"] >= attempt.last.step:
            mark = Mark(sign["step"], sign["time"], sign["phase_seconds"])
            attempt.add(mark, is_record=False)


def summary(buckets: Mapping[str, float], *, num_attempts: int) -> str:
    """Format the account as one line: the share, then the shares of a tenth of a percent or more.

    Args:
        buckets: Seconds by bucket.
        num_attempts: Starts of the run.
    """
    wall = sum(buckets.values())
    shares = {name: buckets[name] / wall if wall > 0 else 0.0 for name in BUCKETS}
    shown = "  ".join(f"{name} {share:.1%}" for name, share in shares.items() if share >= 0.001)
    return f"goodput of {format_duration(wall)} in {num_attempts} attempt(s): {shown}"


def process_start(now: float) -> float:
    """Return when this process started, in seconds since 1970.

    Args:
        now: Seconds since 1970; returned where the system does not tell.
    """
    try:
        stat = Path("/proc/self/stat").read_text()
        ticks = int(stat.rpartition(")")[2].split()[19])  # field 22: start, in ticks after boot
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        age = since_boot - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return now
    return now - age if age >= 0 else now
