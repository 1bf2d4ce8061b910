"""Ownership of a run folder, checked before anything is published in it.

A lock can be lost while its job is alive: the job is suspended or cut off, somebody deletes the
file as an error message advises, and another job starts. And a folder can be removed or unmounted.
So a job notes which folder and which lock file it has opened, by device and inode, and writes the
number of its attempt into the lock file. A job that finds other ones stops.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from glm_dist.errors import CheckpointError
from glm_dist.observe.sinks import Details, SinkGroup

LOCK_FILE = "lock"

Identity = tuple[int, int]
"""Device and inode."""


class LostRunFolderError(CheckpointError):
    """Error for a run folder that is gone or another job's, so nothing may be written there."""


@dataclass(frozen=True)
class Fence:
    """One attempt's claim on a run folder; on rank 0 only."""

    folder: Path
    attempt: int
    folder_identity: Identity
    lock_identity: Identity
    stamp: str
    """Content of the lock file while the claim holds."""
    lock: IO[str] | None = field(repr=False)
    """The open lock file; None if the file system has no locks."""

    @property
    def excludes_others(self) -> bool:
        """True if the file system has locks, so that no other job is alive in the folder."""
        return self.lock is not None

    def check(self) -> None:
        """Check that the folder is the one that was opened and still belongs to this attempt.

        Raises:
            LostRunFolderError: The folder is gone or replaced, or another job has taken over.
            OSError: The file system does not answer.
        """
        try:
            folder = _identity(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            raise self._gone("is gone: it was removed or renamed, or is not mounted") from None
        if folder != self.folder_identity:
            raise self._gone("is another folder than the one that this job opened")
        path = self.folder / LOCK_FILE
        try:
            is_same = _identity(path) == self.lock_identity
            stamp = self._read() if is_same else path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise self._superseded("nobody: it was deleted") from None
        if not is_same or stamp != self.stamp:
            raise self._superseded(stamp.strip() or "another job")

    def holds(self) -> bool:
        """Return True if ``check`` finds nothing wrong."""
        try:
            self.check()
        except (CheckpointError, OSError):
            return False
        return True

    def _read(self) -> str:
        """Read the lock file; opening and closing it once more would give up the lock."""
        if self.lock is None:
            return (self.folder / LOCK_FILE).read_text(encoding="utf-8")
        return os.pread(self.lock.fileno(), 4096, 0).decode()

    def _gone(self, problem: str) -> LostRunFolderError:
        return LostRunFolderError(
            f"The run folder {self.folder} {problem}. The run stops, and nothing is written in its"
            " place.\n"
            "  Put the folder back, and run the same command again.",
            key=str(self.folder),
            value=problem,
            fix="put the folder back",
        )

    def _superseded(self, owner: str) -> LostRunFolderError:
        return LostRunFolderError(
            f"Attempt {self.attempt} of the run in {self.folder} is superseded: {LOCK_FILE} belongs"
            f" to {owner}. This job stops and writes nothing more.\n"
            "  Leave the run to that job; if there is none, run the same command again.",
            key=str(self.folder / LOCK_FILE),
            value=owner,
            fix="leave the run to the other job",
        )


def claim(folder: Path, *, attempt: int, lock: IO[str] | None, job: str = "") -> Fence:
    """Write an attempt's number into the lock file, and note what the attempt has opened.

    Args:
        folder: The run folder.
        attempt: Number of this start of the run, from 1.
        lock: The open lock file; None if the file system has no locks.
        job: This job in the batch system, for whoever waits; empty: none.

    Raises:
        OSError: The lock file cannot be written.
    """
    holder = f"host {socket.gethostname()}, process {os.getpid()}, attempt {attempt}"
    stamp = f"{holder}, {job}\n" if job else f"{holder}\n"
    path = folder / LOCK_FILE
    if lock is None:
        path.write_text(stamp, encoding="utf-8")
    else:
        lock.seek(0)
        lock.truncate()
        lock.write(stamp)
        lock.flush()
    return Fence(
        folder=folder,
        attempt=attempt,
        folder_identity=_identity(folder),
        lock_identity=_identity(path),
        stamp=stamp,
        lock=lock,
    )


class FencedSink:
    """A sink of rank 0 that takes no record once the run folder belongs to somebody else."""

    def __init__(self, sink: SinkGroup, fence: Fence) -> None:
        """Store the sinks and the claim that is checked before each record."""
        self._sink = sink
        self._fence = fence

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricSink``.

        Raises:
            CheckpointError: On rank 0 alone; see ``Fence.check``.
        """
        self._check()
        self._sink.write(step, values)

    def event(self, step: int, kind: str, details: Details) -> None:
        """See ``MetricSink``, and ``write``."""
        self._check()
        self._sink.event(step, kind, details)

    def alive(self, step: int) -> None:
        """See ``SinkGroup``; goodput asks the fence itself."""
        self._sink.alive(step)

    def close(self) -> None:
        """See ``MetricSink``."""
        self._sink.close()

    def _check(self) -> None:
        try:
            self._fence.check()
        except CheckpointError as error:
            error.rank = 0  # the others are in the next step already
            raise


def _identity(path: Path) -> Identity:
    found = os.stat(path)
    return found.st_dev, found.st_ino
