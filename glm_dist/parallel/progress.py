"""A rank's progress, the deadlines of its phases, and the verdict on which rank holds up the job.

Plain data and arithmetic: no threads, no store. Every phase has its own deadline, a multiple of its
median duration, because a save may take a thousand times as long as a vote. The verdict compares
the last report of every rank: a rank that does not answer is guilty first, then ranks that wait for
nobody, then ranks that are behind.
"""

import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

CONNECT = "connecting"
"""Process groups are being created."""
START = "start"
"""Everything between joining the job and the first step."""
BETWEEN = "between phases"
"""The training loop outside of its phases."""
FINISH = "finish"
"""Everything after the last step."""

HISTORY = 32
"""Durations of a phase from which its median is taken."""

ENOUGH = 3
"""Durations after which a phase has a deadline by its median."""

LONGEST_SHARE = 0.9
"""Longest deadline as a share of the collectives' timeout, which would otherwise end the job first
and name no rank."""


class Progress:
    """Current step and phase of this rank, and the durations of its phases.

    The main thread writes, the watchdog's thread reads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start in the phase ``CONNECT``.

        Args:
            clock: Seconds, from any origin.
        """
        self._clock = clock
        self._durations: dict[str, deque[float]] = {}
        self.step = 0
        """Step in progress; 0 before the first one."""
        self.entry = (CONNECT, clock())
        """Phase and the time it was entered, replaced as one object."""

    def enter(self, phase: str | None) -> None:
        """Enter a phase.

        Args:
            phase: Name; None between phases.
        """
        now = self._clock()
        left, since = self.entry
        self._durations.setdefault(left, deque(maxlen=HISTORY)).append(now - since)
        self.entry = (phase or BETWEEN, now)

    def begin_run(self) -> None:
        """Forget the run before: phases of another model take other times."""
        self._durations.clear()
        self.step = 0
        self.entry = (START, self._clock())

    def restart(self) -> None:
        """Start the time of the current phase again: it goes on, or the process was stopped."""
        self.entry = (self.entry[0], self._clock())

    def seconds(self) -> tuple[str, float]:
        """Return the current phase and the time spent in it so far."""
        phase, since = self.entry
        return phase, self._clock() - since

    def durations(self, phase: str) -> list[float]:
        """Return the durations of a phase, newest last."""
        return list(self._durations.get(phase, ()))


@dataclass(frozen=True)
class Deadlines:
    """Seconds that a phase may take."""

    connect: float
    """For ``CONNECT``."""
    first: float
    """For a phase that was timed fewer than ``ENOUGH`` times; 0: no deadlines."""
    floor: float
    factor: float
    timeout: float
    """Timeout of collectives."""

    def of(self, phase: str, durations: list[float]) -> float:
        """Return the deadline of a phase; infinite if there is none.

        Args:
            phase: Its name.
            durations: Its latest durations.
        """
        if self.first <= 0:
            return float("inf")
        seconds = self.first
        if phase == CONNECT:
            seconds = self.connect
        elif len(durations) >= ENOUGH:
            seconds = max(self.floor, self.factor * statistics.median(durations))
        return min(seconds, LONGEST_SHARE * self.timeout)


@dataclass(frozen=True)
class Report:
    """State of one rank at one moment."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    activity: str
    """Part of the step, such as forward-backward; empty if unknown."""
    seconds: float
    """Time in the phase."""
    waits: bool
    """True if the main thread is inside a collective or another exchange with ranks."""
    at: str
    """Function, file and line of the main thread."""
    written: float
    """Seconds since 1970."""
    answers: bool = False
    """True if written after the alarm of some rank."""
    is_deaf: bool = False
    """True if the store does not answer the rank, which cannot hear an alarm then."""

    def to_json(self) -> str:
        """Write as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Report | None":
        """Read an object of ``to_json``; None if it is damaged or of another version."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def where(self) -> str:
        """Step and phase in words."""
        part = self.activity or self.phase
        return f"step {self.step} ({part})" if self.step else part

    @property
    def name(self) -> str:
        """Rank and host in words."""
        return f"rank {self.rank} on {self.host}"


def with_answers_of_deaf_ranks(
    reports: Mapping[int, Report], before: Mapping[int, Report]
) -> dict[int, Report]:
    """Take reports that deaf ranks have written since an alarm for answers to it.

    One of before the alarm says nothing: the store may have been slow for a moment, and the rank
    may be stopped since. Times of writing are compared with the rank's own only, because the clocks
    of hosts differ.

    Args:
        reports: Newest report of each rank.
        before: The same when this rank met the alarm.
    """
    return {
        rank: replace(report, answers=True)
        if report.is_deaf and (rank not in before or report.written != before[rank].written)
        else report
        for rank, report in reports.items()
    }


def verdict(
    reports: Mapping[int, Report], *, world_size: int, now: float, has_left: bool = False
) -> str:
    """Name the ranks that hold up the job, and the ranks that wait for them.

    Args:
        reports: Newest report of each rank; absent ranks never reported.
        world_size: Ranks of the job.
        now: Seconds since 1970.
        has_left: True if a connection broke, so that silent ranks have exited.
    """
    answered = [report for report in reports.values() if report.answers]
    silent = [rank for rank in range(world_size) if rank not in {r.rank for r in answered}]
    waiting = [report for report in answered if report.waits]
    if silent:
        texts = [
            _silent(rank, reports.get(rank), answered, now=now, has_left=has_left)
            for rank in silent[:4]
        ]
        more = [f"{len(silent) - 4} more ranks do not answer"] if len(silent) > 4 else []
        return "; ".join([*texts, *more]) + _waiters(waiting)
    busy = [report for report in answered if not report.waits]
    guilty = _behind(busy or answered)
    if len(guilty) == world_size:
        first = min(guilty, key=lambda report: report.rank)
        ranks = f"all {world_size} ranks are" if world_size > 1 else f"{first.name} has been"
        return (
            f"{ranks} in {first.where} for {first.seconds:.0f} s"
            f"{' and none is behind' if world_size > 1 else ''}; {first.name} {_doing(first)}"
        )
    texts = [
        f"{r.name} has been in {r.where} for {r.seconds:.0f} s; it {_doing(r)}" for r in guilty
    ]
    rest = [report for report in waiting if report not in guilty]
    return "; ".join(texts[:4]) + _waiters(rest)


def _silent(
    rank: int, last: Report | None, peers: list[Report], *, now: float, has_left: bool
) -> str:
    """Describe a rank that does not answer by its last report and by the ranks that do.

    Its report may be older than its end, but no rank is ahead of another by a step.
    """
    log_file = f"see its log/rank_{rank:04d}.log"
    if last is None:
        end = "left" if has_left else "does not answer"
        return f"rank {rank} {end} and has never reported ({log_file})"
    nearest = min(peers, key=lambda peer: peer.step, default=last)
    where = last.where
    if nearest.step > last.step:
        where = f"step {nearest.step}, the others being in {nearest.activity or nearest.phase}"
    if has_left:
        return f"{last.name} left in {where} ({log_file})"
    return (
        f"{last.name} (process {last.pid}) does not answer: it is stopped, or its host is down; "
        f"its last report came {max(now - last.written, 0):.0f} s ago from {where} ({log_file})"
    )


def _behind(reports: list[Report]) -> list[Report]:
    """Return the reports of the lowest step."""
    lowest = min(report.step for report in reports)
    return sorted((r for r in reports if r.step == lowest), key=lambda report: report.rank)


def _doing(report: Report) -> str:
    return f"waits in {report.at}" if report.waits else f"is busy in {report.at}"


def _waiters(waiting: list[Report]) -> str:
    """Name the ranks that wait, in short."""
    if not waiting:
        return ""
    ranks = sorted(report.rank for report in waiting)
    if len(ranks) == 1:
        return f"; rank {ranks[0]} waits"
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if ranks[8:] else "")
    return f"; ranks {shown} wait"
