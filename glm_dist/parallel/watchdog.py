"""Watchdog of one rank: a thread that ends the job when a phase takes too long.

The thread publishes this rank's progress. When a deadline passes it raises the alarm: every rank
writes the stacks of its threads to its log and reports; the rank that raised the alarm first names
the guilty rank on the console and posts the verdict on the failure board, and all ranks exit. If
the store does not answer, because its process is the one that is stopped, every rank judges by the
files in the run folder.

A main thread that never releases Python's lock stops this thread as well. ``faulthandler``'s timer,
which needs no lock, then writes the stacks and ends the process.
"""

import faulthandler
import logging
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

from glm_dist.errors import EXIT_BUG
from glm_dist.parallel.bulletin import Bulletin
from glm_dist.parallel.errors import RankFailure
from glm_dist.parallel.failures import FailureBoard
from glm_dist.parallel.progress import (
    Deadlines,
    Progress,
    Report,
    verdict,
    with_answers_of_deaf_ranks,
)
from glm_dist.parallel.stacks import dump_stacks, log_stream, main_position, raised_position

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
"""Interval between two looks at the clock."""

HEARTBEAT_SECONDS = 10.0
"""Longest interval between two reports while all is well."""

REPORTS_PER_SECOND = 64
"""Reports of all ranks together; fewer ranks report more often, down to one a second."""

ANSWER_SECONDS = 2.0
"""Longest wait of the judge for reports after the alarm."""

VERDICT_SECONDS = 3.5
"""Longest wait of the other ranks for the verdict; then each judges for itself."""

STOPPED_SECONDS = 10.0
"""A gap between two ticks that means that the process itself was stopped: a suspended computer."""

LOCKED_SECONDS = 20.0
"""Time after the deadline at which faulthandler's timer ends a process whose lock is held."""

LOST_CONNECTION = re.compile(
    r"(?i)connection (was )?(closed|reset|refused)|closed by peer|broken pipe|pair closure|"
    r"timed out waiting|nccl|remote process|socket timeout|connectfullmesh|recvvalue|"
    r"peer.*(closed|exited)|read error|write error"
)
"""Messages of collectives whose peer has exited or does not answer."""


_STEP = "step"
"""Phase whose parts the stack distinguishes."""


class Watchdog:
    """Thread that watches the main thread's progress."""

    def __init__(
        self,
        progress: Progress,
        deadlines: Deadlines,
        *,
        board: FailureBoard,
        bulletin: Bulletin,
        world_size: int,
    ) -> None:
        """Prepare; nothing is watched before ``start``.

        Args:
            progress: Written by the main thread.
            deadlines: Seconds per phase.
            board: Gets the verdict.
            bulletin: Exchanges reports.
            world_size: Processes of the job.
        """
        self.progress = progress
        self._deadlines = deadlines
        self._board = board
        self._bulletin = bulletin
        self._world_size = world_size
        self._host = socket.gethostname()
        self._ends = threading.Event()
        self._interval = min(max(world_size / REPORTS_PER_SECOND, 1.0), HEARTBEAT_SECONDS)
        self._published = float("-inf")
        self._armed = float("-inf")
        self._alarmed: float | None = None
        self._before: dict[int, Report] = {}
        self._has_left = False

    def open_folder(self, folder: Path) -> None:
        """Publish reports as files as well, the first one at once.

        A rank that dies in its first second has reported then, and its file is of this attempt.

        Args:
            folder: Need not exist; the same on all ranks.
        """
        self._bulletin.folder = folder
        self._bulletin.publish(self._report(answers=False))

    def start(self) -> None:
        """Begin to watch."""
        self._bulletin.start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._ends.set()
        self._bulletin.close()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._ends.wait(TICK_SECONDS):
            now = time.monotonic()
            if now - last > STOPPED_SECONDS:
                log.warning("this process was stopped seconds=%.0f", now - last)
                self.progress.restart()
            last = now
            self._tick(now)

    def _tick(self, now: float) -> None:
        phase, seconds = self.progress.seconds()
        limit = self._deadlines.of(phase, self.progress.durations(phase))
        self._arm(now, limit - seconds)
        is_late = seconds > limit
        if is_late and self._alarmed is None:
            log.error(
                "no progress for seconds=%.0f in %s; stacks of all threads follow",
                seconds,
                self._report(answers=True).where,
                extra={"file_only": True},
            )
            self._bulletin.raise_alarm()
        rings = is_late or self._bulletin.rings
        if rings and self._alarmed is None:
            self._alarmed = now
            self._before = self._bulletin.reports()
            dump_stacks()
        if self._has_left:
            return  # the main thread reports and judges
        answers = self._alarmed is not None
        if answers or self._bulletin.is_deaf or now - self._published >= self._interval:
            self._published = now
            self._bulletin.publish(self._report(answers=answers))
        if self._alarmed is not None:
            self._judge(now - self._alarmed)

    def _arm(self, now: float, remaining: float) -> None:
        """Set faulthandler's timer to a while after the deadline of the current phase."""
        if remaining == float("inf") or now - self._armed < HEARTBEAT_SECONDS / 2:
            return
        self._armed = now
        seconds = max(remaining, 0.0) + LOCKED_SECONDS
        faulthandler.dump_traceback_later(seconds, exit=True, file=log_stream())

    def _report(self, *, answers: bool, error: BaseException | None = None) -> Report:
        phase, seconds = self.progress.seconds()
        place = main_position() if error is None else raised_position(error)
        return Report(
            rank=self._board.rank,
            host=self._host,
            pid=os.getpid(),
            step=self.progress.step,
            phase=phase,
            activity=place.activity if phase == _STEP else "",
            seconds=round(seconds, 1),
            waits=place.waits,
            at=place.at,
            written=time.time(),
            answers=answers,
            is_deaf=self._bulletin.is_deaf,
        )

    def _reports(self) -> dict[int, Report]:
        """Return the newest report of each rank; one that answers is of after the alarm."""
        return with_answers_of_deaf_ranks(self._bulletin.reports(), self._before)

    def _judge(self, waited: float) -> None:
        """Give the verdict, if it is this rank's turn, and end the process."""
        bulletin = self._bulletin
        answered = sum(report.answers for report in self._reports().values())
        is_complete = answered == self._world_size
        if bulletin.is_judge and (is_complete or waited >= ANSWER_SECONDS):
            self._end(self._verdict(), speaks=True)
        if waited >= VERDICT_SECONDS or (bulletin.is_deaf and waited >= ANSWER_SECONDS):
            alive = [report.rank for report in self._reports().values() if report.answers]
            self._end(self._verdict(), speaks=self._board.rank == min(alive, default=0))

    def _verdict(self) -> str:
        text = verdict(
            self._reports(),
            world_size=self._world_size,
            now=time.time(),
            has_left=self._has_left,
        )
        if self._has_left:
            return text
        return f"The job hangs: {text}. Stacks of all threads are in log/rank_*.log."

    def _end(self, text: str, *, speaks: bool) -> None:
        """Report the verdict and end the process, whatever its main thread does."""
        log.log(logging.ERROR, "%s", text, extra={} if speaks else {"file_only": True})
        if speaks:
            # The store may not answer, so its thread is not waited for without end.
            post = threading.Thread(target=self._board.post_verdict, args=(text,), daemon=True)
            post.start()
            post.join(1.5)
        for stream in (sys.stderr, log_stream()):
            stream.flush()
        os._exit(EXIT_BUG)

    def explain(self, error: BaseException) -> RankFailure | None:
        """Find out which rank has left, after a collective failed on this rank.

        Every rank that lost its connection calls it; the first one gives the verdict.

        Args:
            error: Exception of the collective.

        Returns:
            Failure that names the ranks; None if the exception is of another kind.
        """
        if not LOST_CONNECTION.search(str(error)):
            return None
        bulletin, rank = self._bulletin, self._board.rank
        self._has_left = True
        self._before = self._before or bulletin.reports()
        own = self._report(answers=True, error=error)
        bulletin.publish(own)
        bulletin.raise_alarm()
        deadline = time.monotonic() + VERDICT_SECONDS
        judged = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            if not bulletin.is_deaf:
                failure = self._board.read()
                if failure is not None:
                    return failure
            if time.monotonic() > judged and (bulletin.is_judge or bulletin.is_deaf):
                break
            time.sleep(0.1)
        reports = self._reports()
        if all(r in reports and reports[r].answers for r in range(self._world_size)):
            first_line = (str(error).splitlines() or [""])[0]
            text = f"rank {rank} on {self._host} lost a connection in {own.where}: {first_line}"
        else:
            text = self._verdict()
        log.info("lost a connection", exc_info=error, extra={"file_only": True})
        alive = [report.rank for report in reports.values() if report.answers]
        if bulletin.is_judge:
            self._board.post_verdict(text)
        speaks = bulletin.is_judge or (bulletin.is_deaf and rank == min(alive, default=rank))
        return RankFailure(rank, self._host, text, is_verdict=True, is_reported=not speaks)
