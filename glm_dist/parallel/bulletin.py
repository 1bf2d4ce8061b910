"""Reports of all ranks, exchanged in the job's store and in files, and the alarm of one of them.

A thread of its own talks to the store, because a store whose process is stopped never answers. In
that case the files in the run folder are enough.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from torch._C._distributed_c10d import PrefixStore, Store

from glm_dist.parallel.progress import Report

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Interval between two exchanges with the store."""

DEAF_SECONDS = 2.0
"""Time without an answer after which the store counts as lost."""

_ALARM = "alarm"


class Bulletin:
    """Newest report of every rank."""

    def __init__(self, store: Store, *, rank: int, world_size: int) -> None:
        """Take part; nothing is exchanged before ``start``.

        Args:
            store: The job's store, over a connection that nobody else uses.
            rank: This process.
            world_size: Processes of the job.
        """
        self._store = PrefixStore("glm_dist/reports", store)
        self._rank = rank
        self._world_size = world_size
        self._outbox: str | None = None
        self._wakes = threading.Event()
        self._ends = threading.Event()
        self._wants_alarm = False
        self._asked: float | None = None
        self._from_store: dict[int, Report] = {}
        self._own: list[Report] = []
        self.folder: Path | None = None
        """Folder of the files; None before the run folder is open."""
        self.rings = False
        """True once some rank has raised the alarm."""
        self.is_judge = False
        """True on the rank that raised the alarm first."""
        self._is_lost = False

    def start(self) -> None:
        """Begin to exchange."""
        threading.Thread(target=self._exchange, name="bulletin", daemon=True).start()

    def close(self) -> None:
        """Stop exchanging."""
        self._ends.set()
        self._wakes.set()

    @property
    def is_deaf(self) -> bool:
        """True if the store cannot be reached or does not answer."""
        asked = self._asked
        return self._is_lost or (asked is not None and time.monotonic() - asked > DEAF_SECONDS)

    def publish(self, report: Report) -> None:
        """Publish this rank's newest report; never blocks on the store.

        Args:
            report: Replaces the one before.
        """
        self._own = [report]
        self._outbox = report.to_json()
        if report.answers:
            self._wakes.set()
        if self.folder is None:
            return
        file = self.folder / f"rank_{self._rank:04d}.json"
        try:
            self.folder.mkdir(exist_ok=True)
            file.with_suffix(".tmp").write_text(report.to_json(), encoding="utf-8")
            os.replace(file.with_suffix(".tmp"), file)
        except OSError as error:
            # A full disk must not end the job; the store has the report as well.
            log.debug("could not write %s: %s", file, error)

    def raise_alarm(self) -> None:
        """Ask every rank for a report."""
        self._wants_alarm = True
        self._wakes.set()

    def reports(self) -> dict[int, Report]:
        """Return the newest report of each rank, from the store and from the files."""
        newest = dict(self._from_store)
        for report in [*self._own, *self._from_files()]:
            known = newest.get(report.rank)
            if known is None or known.written < report.written:
                newest[report.rank] = report
        return newest

    def _from_files(self) -> Iterator[Report]:
        if self.folder is None:
            return
        for rank in range(self._world_size):
            try:
                content = (self.folder / f"rank_{rank:04d}.json").read_bytes()
            except OSError:
                continue
            report = Report.from_json(content)
            if report is not None and report.rank == rank:
                yield report

    def _exchange(self) -> None:
        while not self._ends.is_set():
            self._wakes.wait(POLL_SECONDS)
            self._wakes.clear()
            try:
                self._asked = time.monotonic()
                self._exchange_once()
                self._asked = None
            except RuntimeError:  # its process has exited
                self._is_lost = not self._ends.is_set()
                return

    def _exchange_once(self) -> None:
        text, self._outbox = self._outbox, None
        if text is not None:
            self._store.set(str(self._rank), text)
        if self._wants_alarm and not self.rings:
            self.is_judge = self._store.add(_ALARM, 1) == 1
        self.rings = self.rings or self._store.check([_ALARM])
        if self.is_judge:
            for rank in range(self._world_size):
                if self._store.check([str(rank)]):
                    report = Report.from_json(self._store.get(str(rank)))
                    if report is not None:
                        self._from_store[rank] = report
