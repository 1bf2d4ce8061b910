"""Goodput: a run's wall time over all attempts, split by what it was spent on.

Pure arithmetic over the lines of ``metrics.jsonl``. Every line has ``time`` and ``phase_seconds``,
the seconds of each phase since the attempt's loop began on rank 0, so an attempt that was killed
is known up to its last line, or a later mark in ``goodput.json``: its last sign of life. Down time
begins there.

=============  =================================================================================
useful_steps   steps whose results remain: computing, and waiting for other ranks
start_up       from the start of the process to the first step: imports, model, data, checkpoint
first_step     time that an attempt's first step took above its later ones, such as compilation
data           waiting for rows
validation     validations
save           training stopped for a checkpoint
lost_steps     everything after the step from which the run started again, or to which it rewound
down           from an attempt's last sign of life to the start of the next one's process
other          the rest
=============  =================================================================================

A rewind divides an attempt into two parts, which are counted like two attempts without a start-up.
An attempt that never reached its first step, because it was refused or killed before, is down time.
Lines of older versions have no ``phase_seconds``; speed and saves are taken from their metrics.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm_dist.observe.metrics import SECONDS_PER_STEP, TRAIN_LOSS, WAIT_SHARE
from glm_dist.observe.metrics_file import REWOUND, STARTED
from glm_dist.observe.phases import DATA, RECORD, SAVE, STEP, VALIDATE, VOTE

USEFUL = "useful_steps"
START_UP = "start_up"
FIRST_STEP = "first_step"
WAITING = "data"
VALIDATION = "validation"
SAVING = "save"
LOST = "lost_steps"
DOWN = "down"
OTHER = "other"

BUCKETS = (USEFUL, START_UP, FIRST_STEP, WAITING, VALIDATION, SAVING, LOST, DOWN, OTHER)

COMPUTING = (STEP, VOTE, RECORD)
"""Phases of a step; a device's computation ends while its results are read."""

Buckets = dict[str, float]
"""Seconds by bucket; all of ``BUCKETS``."""


@dataclass(frozen=True)
class Mark:
    """State of an attempt when a line was written."""

    step: int
    time: float
    """Seconds since 1970."""
    seconds: Mapping[str, float]
    """Seconds of each phase since the loop began."""

    @property
    def computing(self) -> float:
        """Seconds of all steps so far."""
        return sum(self.seconds.get(phase, 0.0) for phase in COMPUTING)


@dataclass
class Attempt:
    """One start of the run, up to its last sign of life; or a part of it that a rewind ends."""

    first_step: int
    """Steps done before."""
    process_started: float
    """Seconds since 1970."""
    loop_started: float
    """Seconds since 1970; of a part after a rewind, its beginning."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each phase before this part."""
    is_rest: bool = False
    """True for a part after a rewind."""
    first_record: Mark | None = None
    """State at the record after the first step."""
    marks: list[Mark] = field(default_factory=list)
    """In the order of the file, after the start."""

    @property
    def start(self) -> Mark:
        """State before the first step."""
        return Mark(self.first_step, self.loop_started, self.spent)

    @property
    def begun(self) -> float:
        """Time at which it followed what was before, in seconds since 1970."""
        return self.loop_started if self.is_rest else self.process_started

    @property
    def last(self) -> Mark:
        """Last sign of life."""
        return self.marks[-1] if self.marks else self.start

    def add(self, mark: Mark, *, is_record: bool) -> None:
        """Add a line's state.

        Args:
            mark: The state.
            is_record: The line holds the metrics of steps.
        """
        is_first = mark.step == self.first_step + 1 and not self.is_rest
        if is_record and is_first and self.first_record is None:
            self.first_record = mark
        self.marks.append(mark)

    def after(self, step: int) -> Mark:
        """Return the state after a step, with all that followed it; between lines, in proportion.

        Args:
            step: At most the step of the last line.
        """
        before = self.start
        for mark in self.marks:
            if mark.step > step:
                break
            before = mark
        else:
            return before
        if before.step >= step:
            return before
        share = (step - before.step) / (mark.step - before.step)
        phases = before.seconds.keys() | mark.seconds.keys()
        return Mark(
            step,
            before.time + share * (mark.time - before.time),
            {
                phase: (1 - share) * before.seconds.get(phase, 0.0)
                + share * mark.seconds.get(phase, 0.0)
                for phase in phases
            },
        )

    def first_step_surplus(self) -> float:
        """Return the seconds of the first step beyond the mean of the later ones; 0 if alone."""
        later = self.last.step - self.first_step - 1
        if self.first_record is None or later < 1:
            return 0.0
        first = self.first_record.computing
        return max(0.0, first - (self.last.computing - first) / later)


def read_attempts(records: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """Collect the attempts of a run.

    Args:
        records: Lines of ``metrics.jsonl`` in the order of the file, of any version.
    """
    attempts: list[Attempt] = []
    by_number: dict[int, Attempt] = {}
    for record in records:
        number, step, time = record["attempt"], int(record["step"]), float(record.get("time", 0.0))
        if record.get("event") == STARTED or number not in by_number:
            begun = float(record.get("process_started", time))
            by_number[number] = Attempt(step, process_started=begun, loop_started=time)
            attempts.append(by_number[number])
            continue
        attempt = by_number[number]
        seconds = record.get("phase_seconds")
        if not isinstance(seconds, Mapping):
            seconds = _estimated_seconds(record, attempt.last)
        # The event of a save in the background comes after records of later steps.
        mark = Mark(max(step, attempt.last.step), time, seconds)
        attempt.add(mark, is_record=TRAIN_LOSS in record)
        if record.get("event") == REWOUND:
            begun = attempt.process_started
            by_number[number] = Attempt(step, begun, time, spent=seconds, is_rest=True)
            attempts.append(by_number[number])
    return attempts


def account(attempts: Sequence[Attempt]) -> Buckets:
    """Split the wall time from the first process's start to the last sign of life.

    Args:
        attempts: In the order of their starts.

    Returns:
        Seconds by bucket; their sum is the wall time.
    """
    if not attempts:
        return dict.fromkeys(BUCKETS, 0.0)
    last = attempts[-1]
    before = account_before(attempts[:-1], last)
    return add(before, account_attempt(last))


def account_before(attempts: Sequence[Attempt], following: Attempt) -> Buckets:
    """Split the wall time from the first process's start to that of the following attempt."""
    total = dict.fromkeys(BUCKETS, 0.0)
    for buckets in account_each([*attempts, following])[:-1]:
        total = add(total, buckets)
    return total


def account_each(attempts: Sequence[Attempt]) -> list[Buckets]:
    """Split the wall time of each attempt, with the down time that follows it.

    Args:
        attempts: In the order of their starts.
    """
    found: list[Buckets] = []
    kept, following = math.inf, None
    for attempt in reversed(attempts):
        kept = math.inf if following is None else min(kept, following.first_step)
        buckets = account_attempt(attempt, kept=kept)
        if following is not None:
            buckets[DOWN] += following.begun - attempt.last.time
        found.append(buckets)
        following = attempt
    return found[::-1]


def account_attempt(attempt: Attempt, *, kept: float = math.inf) -> Buckets:
    """Split an attempt's time from its process's start to its last sign of life.

    Args:
        attempt: The attempt.
        kept: Last step that no later attempt repeated.
    """
    end = attempt.last
    cut = attempt.after(max(int(kept), attempt.first_step)) if kept < end.step else end
    surplus = min(attempt.first_step_surplus(), cut.computing)
    named = {
        bucket: cut.seconds.get(phase, 0.0) - attempt.spent.get(phase, 0.0)
        for bucket, phase in ((WAITING, DATA), (VALIDATION, VALIDATE), (SAVING, SAVE))
    }
    named |= {FIRST_STEP: surplus, USEFUL: cut.computing - attempt.start.computing - surplus}
    return {
        **dict.fromkeys(BUCKETS, 0.0),
        **named,
        START_UP: attempt.loop_started - attempt.begun,
        LOST: end.time - cut.time,
        OTHER: cut.time - attempt.loop_started - sum(named.values()),
    }


def add(one: Buckets, other: Buckets) -> Buckets:
    """Add seconds by bucket."""
    return {name: one[name] + other[name] for name in BUCKETS}


def useful_share(buckets: Buckets) -> float:
    """Return the share of the wall time, 0 to 1, that was spent on steps that remain."""
    wall = sum(buckets.values())
    return buckets[USEFUL] / wall if wall > 0 else 0.0


def _estimated_seconds(record: Mapping[str, Any], before: Mark) -> dict[str, float]:
    """Estimate the seconds of each phase from the metrics of a line without them."""
    seconds = dict(before.seconds)
    steps = record["step"] - before.step
    pace = record.get(SECONDS_PER_STEP)
    if isinstance(pace, float) and steps > 0:
        waited = float(record.get(WAIT_SHARE + DATA, 0.0)) * pace * steps
        seconds[DATA] = seconds.get(DATA, 0.0) + waited
        seconds[STEP] = seconds.get(STEP, 0.0) + pace * steps - waited
    if record.get("event") == "checkpoint":
        seconds[SAVE] = seconds.get(SAVE, 0.0) + float(record.get("seconds", 0.0))
    return seconds
