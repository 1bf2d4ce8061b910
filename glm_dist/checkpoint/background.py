"""Save in a thread: training waits for a copy into host memory, and a thread writes the copy.

The thread calls ``save_checkpoint`` with a process group for saves alone, so its collectives never
meet the ones of training, and files and checks are the same as in a save that training waits for.
The training threads of all ranks learn the outcome together, by a small exchange in each step while
a save is in flight. A save that takes too long counts as failed; its thread blocks neither training
nor the end of the process.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from glm_dist.checkpoint.folders import step_name
from glm_dist.checkpoint.host_memory import available_bytes
from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.checkpoint.snapshot import Snapshot, bytes_to_reserve, check_host_memory
from glm_dist.errors import CheckpointError, GlmDistError
from glm_dist.parallel.errors import RankFailure, Ranks, SaveProgress

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
"""Interval of the exchanges while training waits for a save."""

NICENESS = 10
"""Priority of the thread: it should use what training leaves of the cores."""


class HungSaveError(CheckpointError):
    """Error for a save that has not ended in time."""


class _State(IntEnum):
    """State of a save on one rank."""

    RUNS = 0
    SAVED = 1
    FAILED = 2
    """An error that all ranks share; the group is intact."""
    BROKEN = 3
    """Anything else, such as a collective that timed out; the group is not used again."""
    OVERDUE = 4


@dataclass
class _Save:
    """One save on this rank; its thread writes the fields that follow ``thread``."""

    step: int
    path: Path
    started: float
    progress: SaveProgress
    thread: threading.Thread = field(init=False)
    ended: float | None = None
    num_bytes: int = 0
    error: BaseException | None = None

    def state(self, timeout: timedelta) -> _State:
        """Return how far the save is."""
        if self.ended is None:
            overdue = time.monotonic() - self.started > timeout.total_seconds()
            return _State.OVERDUE if overdue else _State.RUNS
        if self.error is None:
            return _State.SAVED
        shared = isinstance(self.error, GlmDistError | RankFailure)
        return _State.FAILED if shared else _State.BROKEN


class _OutcomeKept:
    """Context that keeps an exception of the thread for the training thread, which raises it."""

    def __init__(self, save: _Save) -> None:
        self._save = save

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._save.error = error
        self._save.ended = time.monotonic()  # last: the other fields are final once it is set
        return True


@dataclass(frozen=True)
class _Report:
    """A save on one rank, for the other ranks."""

    rank: int
    host: str
    state: _State
    seconds: float
    num_bytes: int
    progress: SaveProgress
    waits: bool
    """True if the thread is in a collective, so another rank keeps it."""
    error: GlmDistError | RankFailure | None


@dataclass(frozen=True)
class SaveOutcome:
    """Outcome of a save; equal on all ranks except for the traceback of a bug."""

    step: int
    path: Path
    seconds: float
    """From the copy to the end, of the slowest rank."""
    num_bytes: int = 0
    """Size of the folder."""
    error: Exception | None = None


class BackgroundWriter:
    """Writer of checkpoints in a thread, one at a time; all but ``settle`` is collective."""

    def __init__(self, device: torch.device, *, timeout: timedelta) -> None:
        """Create the process group of saves.

        Args:
            device: The rank's device.
            timeout: Time after which a save counts as failed.
        """
        self._device = device
        self._timeout = timeout
        self._snapshot = Snapshot(device)
        self._group: dist.ProcessGroup | None = self._new_group()
        self._save: _Save | None = None
        self._overdue: _Save | None = None

    @property
    def is_busy(self) -> bool:
        """True from ``start`` until the outcome was returned; equal on all ranks."""
        return self._save is not None

    def reserve(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """Reserve host memory, so that a lack of it is known before training.

        Args:
            tensors: This rank's fragments by global name.

        Returns:
            Bytes reserved on this rank.

        Raises:
            CheckpointError: On every rank, if one has too little.
        """
        ranks = Ranks(None)
        needs = ranks.gather((socket.gethostname(), bytes_to_reserve(tensors)))
        with ranks.raise_on_all_ranks("compare host memory", "checkpoint.background"):
            check_host_memory(needs, available_bytes())
        with ranks.raise_on_all_ranks("reserve host memory", "checkpoint.background"):
            self._snapshot.reserve(tensors)
        return self._snapshot.num_bytes

    def start(
        self,
        directory: Path,
        *,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        extra: Mapping[str, Json],
        layout: Mapping[str, int],
        keep_last: int,
        upkeep: Upkeep | None = None,
    ) -> Path:
        """Copy the tensors and begin to write the copy; arguments as of ``save_checkpoint``.

        No save may be in flight.

        Returns:
            The future folder.

        Raises:
            HungSaveError: On every rank: an overdue save still uses the copy's memory.
            CheckpointError: On every rank: too little host memory.
        """
        assert self._save is None, "wait for the save before"
        self._check_overdue()
        with Ranks(None).raise_on_all_ranks("copy the state", "checkpoint.background"):
            fragments = self._snapshot.take(tensors)
        if self._group is None:
            self._group = self._new_group()
        path = directory / step_name(step)
        save = _Save(step, path, time.monotonic(), SaveProgress(path=str(path)))

        def write(group: dist.ProcessGroup) -> None:
            save_checkpoint(
                directory,
                step=step,
                tensors=fragments,
                extra=extra,
                layout=layout,
                keep_last=keep_last,
                upkeep=upkeep,
                group=group,
                progress=save.progress,
            )

        group = self._group
        save.thread = threading.Thread(
            target=lambda: self._run(save, lambda: write(group)),
            name=f"save of step {step}",
            daemon=True,  # a disk that never answers must not keep the process
        )
        self._save = save
        save.thread.start()
        return path

    def poll(self) -> SaveOutcome | None:
        """Return the outcome of the save in flight, if it has ended on all ranks or is overdue."""
        save = self._save
        if save is None:
            return None
        counts = torch.zeros(len(_State), dtype=torch.int64)
        counts[save.state(self._timeout)] = 1
        dist.all_reduce(counts)
        if counts[_State.RUNS] and not counts[_State.OVERDUE]:
            return None
        reports = Ranks(None).gather(_report(save, self._timeout))
        self._save = None
        if any(report.state is _State.OVERDUE for report in reports):
            self._overdue = save
        if any(report.state in (_State.BROKEN, _State.OVERDUE) for report in reports):
            # Not destroyed: a thread may still be in one of its collectives.
            self._group = None
        return SaveOutcome(
            save.step,
            save.path,
            max(report.seconds for report in reports),
            max(report.num_bytes for report in reports),
            _common_error(save, reports, self._timeout),
        )

    def wait(
        self, turn: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> SaveOutcome | None:
        """Wait for the save in flight.

        Args:
            turn: Context of each short wait, so that a watchdog sees that training is not stuck.

        Returns:
            Its outcome; None if there was none.
        """
        while self._save is not None:
            with turn():
                # Short waits: a rank that was done would else sit in an exchange for longer than
                # collectives may take, if another rank's disk is slow.
                self._save.thread.join(POLL_SECONDS)
                outcome = self.poll()
            if outcome is not None:
                return outcome
        return None

    def settle(
        self, turn: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> SaveOutcome | None:
        """Wait for the save in flight without any exchange, for the end after an error.

        Not collective: every rank waits for its own thread.

        Args:
            turn: See ``wait``.

        Returns:
            The outcome on this rank; None if there was none, or it is overdue.
        """
        save = self._save
        if save is None:
            return None
        while save.state(self._timeout) is _State.RUNS:
            with turn():
                save.thread.join(POLL_SECONDS)
        self._save = None
        if save.ended is None:
            return None
        report = _report(save, self._timeout)
        return SaveOutcome(save.step, save.path, report.seconds, report.num_bytes, report.error)

    def _new_group(self) -> dist.ProcessGroup:
        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=self._timeout)
        return group

    def _check_overdue(self) -> None:
        """Raise while the thread of an overdue save still runs on any rank."""
        save = self._overdue
        if save is None:
            return
        reports = Ranks(None).gather(_report(save, self._timeout))
        if any(report.state is _State.OVERDUE for report in reports):
            raise _hung_error(reports, self._timeout)
        if save.error is None:
            log.info("finished an overdue save path=%s", save.path)
        self._overdue = None

    def _run(self, save: _Save, write: Callable[[], None]) -> None:
        """Body of the thread."""
        with _OutcomeKept(save):
            yield_to_training()
            with _own_stream(self._device):
                write()
            if dist.get_rank() == 0:  # other hosts may see the new name later
                save.num_bytes = folder_bytes(save.path)


def folder_bytes(folder: Path) -> int:
    """Return the size of a checkpoint."""
    return sum(file.stat().st_size for file in folder.iterdir())


def yield_to_training() -> None:
    """Lower the priority of the calling thread."""
    if sys.platform == "linux":  # elsewhere a thread has no priority that this call could set
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + NICENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))


@contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Keep the thread off the stream of training; torch's writer waits for its current one."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_device(device)  # a new thread begins on device 0
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield


def _report(save: _Save, timeout: timedelta) -> _Report:
    rank, host, state = dist.get_rank(), socket.gethostname(), save.state(timeout)
    error = save.error
    if error is not None and not isinstance(error, GlmDistError | RankFailure):
        error = RankFailure(rank, host, f"{type(error).__name__}: {error}")
    ended = time.monotonic() if save.ended is None else save.ended
    return _Report(
        rank=rank,
        host=host,
        state=state,
        seconds=ended - save.started,
        num_bytes=save.num_bytes,
        progress=save.progress,
        waits=_is_in_collective(save.thread),
        error=error,
    )


def _is_in_collective(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_globals.get("__name__") == distributed_c10d.__name__:
            return True
        frame = frame.f_back
    return False


def _common_error(save: _Save, reports: list[_Report], timeout: timedelta) -> Exception | None:
    """Return the error of a save for every rank; a bug keeps its traceback where it happened."""
    if isinstance(save.error, Exception) and save.state(timeout) is _State.BROKEN:
        return save.error
    if any(report.state is _State.OVERDUE for report in reports):
        return _hung_error(reports, timeout)
    return next((report.error for report in reports if report.error is not None), None)


def _hung_error(reports: list[_Report], timeout: timedelta) -> HungSaveError:
    overdue = [report for report in reports if report.state is _State.OVERDUE]
    culprit = next((report for report in overdue if not report.waits), overdue[0])
    minutes = timeout.total_seconds() / 60
    return HungSaveError(
        f"{culprit.progress.path}: rank {culprit.rank} on {culprit.host} could not"
        f" {culprit.progress.task} within {minutes:g} minutes.\n"
        "  Check the disk; if it is only slow, raise checkpoint.timeout_minutes.",
        key="checkpoint.timeout_minutes",
        value=minutes,
        fix="checkpoint.timeout_minutes=<more>",
    )
