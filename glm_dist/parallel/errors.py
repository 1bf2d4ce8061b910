"""Collective error handling: an error on one rank is raised on all ranks.

If only one rank raises between two collectives, the others hang. Local work (mostly on files) runs
inside ``Ranks.raise_on_all_ranks``, which ends with one small exchange:

- a user error (``GlmDistError``) is raised unchanged on every rank;
- an error of the operating system (``OSError``) becomes a message with path and remedy;
- anything else is a bug: the rank that raised it keeps its exception, the others raise a
  ``RankFailure`` that names the rank.
"""

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from glm_dist.errors import EXIT_BUG, EXIT_HUMAN_NEEDED, CheckpointError, GlmDistError

log = logging.getLogger(__name__)

T = TypeVar("T")

_REMEDIES = {
    errno.ENOSPC: "Free space there, or set paths.runs to a file system with room.",
    errno.EDQUOT: "Raise the quota there, or set paths.runs to a file system with room.",
    errno.EFBIG: "Raise the file size limit (ulimit -f).",
    errno.EACCES: "Make it writable for this user, or set paths.runs to another folder.",
    errno.EPERM: "Make it writable for this user, or set paths.runs to another folder.",
    errno.EROFS: "Set paths.runs to a file system that is not read-only.",
}
_NOTHING_LOST = "Earlier checkpoints are intact; run the same command again to resume."


class RankFailure(Exception):  # noqa: N818
    """Error on the other ranks when one rank failed."""

    def __init__(
        self,
        rank: int,
        host: str,
        summary: str,
        *,
        status: int = EXIT_BUG,
        is_verdict: bool = False,
        is_reported: bool = False,
    ) -> None:
        """Store the failed rank.

        Args:
            rank: The rank that failed, or that gave the verdict.
            host: Its host.
            summary: Its error in one line; of a verdict, the whole message.
            status: Exit status of every rank of the job; of a user error, that error's.
            is_verdict: True if the watchdog found that some rank hangs or has left.
            is_reported: True if another rank prints it.
        """
        super().__init__(rank, host, summary, status, is_verdict, is_reported)
        self.rank = rank
        self.host = host
        self.summary = summary
        self.status = status
        self.is_verdict = is_verdict
        self.is_reported = is_reported

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with every field."""
        return (_rank_failure, self.args)

    def __str__(self) -> str:
        """Name the failed rank, its error and its log file."""
        if self.is_verdict:
            return self.summary
        log_file = f"log/rank_{self.rank:04d}.log"
        return f"rank {self.rank} on {self.host} failed: {self.summary} (see its {log_file})"


def _rank_failure(
    rank: int, host: str, summary: str, status: int, is_verdict: bool, is_reported: bool
) -> RankFailure:
    return RankFailure(
        rank, host, summary, status=status, is_verdict=is_verdict, is_reported=is_reported
    )


@contextmanager
def on_this_rank(rank: int) -> Iterator[None]:
    """Mark user errors of the block as local to this rank.

    Other ranks do not raise them, so the report names rank and host.

    Args:
        rank: This rank.
    """
    try:
        yield
    except GlmDistError as error:
        error.rank = rank
        raise


@dataclass
class SaveProgress:
    """Current task of this rank in a save, read by another thread to report a hang."""

    task: str = "start"
    """Follows "could not"."""
    path: str = ""
    """Path at stake."""


@contextmanager
def needs_human(rank: int) -> Iterator[None]:
    """Give user errors of the block, as in training, the status that keeps launchers from a retry.

    Args:
        rank: This rank.

    Raises:
        CheckpointError: In place of an error of the operating system on this rank.
    """
    try:
        yield
    except GlmDistError as error:
        error.status = EXIT_HUMAN_NEEDED
        raise
    except OSError as error:
        mistake = refusal(error, task="continue", path=str(error.filename or "input or output"))
        mistake.rank, mistake.status = rank, EXIT_HUMAN_NEEDED
        raise mistake from error


class Ranks:
    """Processes that save or load together; a single process if none joined."""

    def __init__(
        self, group: dist.ProcessGroup | None, progress: SaveProgress | None = None
    ) -> None:
        """Take part.

        Args:
            group: All ranks of the job, over gloo instead of NCCL, since objects are exchanged.
                None means the default group, or only this process if there is none.
            progress: Receives each task as it begins.
        """
        self.group = group
        self.progress = progress
        self.is_joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if self.is_joined else 0
        self.size = dist.get_world_size(group) if self.is_joined else 1

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order, on every rank."""
        if not self.is_joined:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, task: str, key: str, action: Callable[[], T]) -> T:
        """Run an action on rank 0 only; return its result or raise its error on every rank."""
        results: list[T] = []
        with RaiseOnAllRanks(self, task, key, names_rank=False):
            if self.rank == 0:
                results.append(action())
        return next(iter(self.gather(results)[0]))

    def raise_on_all_ranks(self, task: str, key: str) -> "RaiseOnAllRanks":
        """Return a context in which a failure of any rank is raised on all of them.

        The block holds local work, or one collective that already fails on every rank.

        Args:
            task: Task of the block, to follow "could not".
            key: Path at stake.
        """
        return RaiseOnAllRanks(self, task, key)


@dataclass(frozen=True)
class _Verdict:
    """Outcome of a block on one rank."""

    rank: int
    host: str
    error: GlmDistError | RankFailure


class RaiseOnAllRanks:
    """See ``Ranks.raise_on_all_ranks``."""

    def __init__(self, ranks: Ranks, task: str, key: str, *, names_rank: bool = True) -> None:
        """Store the parts of the error message.

        Args:
            ranks: Participating processes.
            task: Task of the block, to follow "could not".
            key: Path at stake.
            names_rank: Name rank and host of an error that not every rank raised.
        """
        self.ranks = ranks
        self.task = task
        self.key = key
        self.names_rank = names_rank

    def __enter__(self) -> None:
        """Note the task."""
        if self.ranks.progress is not None:
            self.ranks.progress.task, self.ranks.progress.path = self.task, self.key

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Exchange verdicts; raise the same error everywhere if one rank failed."""
        mine = [] if error is None else self._verdicts(error)
        verdicts = {v.rank: v for each in self.ranks.gather(mine) for v in each}
        if not verdicts or _is_stop(error):
            return
        own = verdicts.get(self.ranks.rank)
        if own is not None and isinstance(own.error, RankFailure):
            if isinstance(error, CheckpointException):
                raise _original(error, self.ranks.rank)
            return  # a bug keeps its exception
        failures = [v.error for v in verdicts.values() if isinstance(v.error, RankFailure)]
        if failures:
            raise failures[0]
        raise self._common(sorted(verdicts.values(), key=lambda v: v.rank)) from error

    def _common(self, verdicts: list[_Verdict]) -> GlmDistError:
        """Merge the ranks' user errors into one, equal on every rank."""
        by_text = {str(v.error): v for v in reversed(verdicts)}
        first = verdicts[0].error
        assert isinstance(first, GlmDistError)
        is_everywhere = len(verdicts) == self.ranks.size
        if len(by_text) == 1 and (is_everywhere or not self.names_rank):
            return first
        lines = [f"Rank {v.rank} on {v.host}: {text}" for text, v in reversed(by_text.items())]
        merged = type(first)("\n".join(lines), key=first.key, value=first.value, fix=first.fix)
        merged.status = max(v.error.status for v in verdicts)
        return merged

    def _verdicts(self, error: BaseException) -> list[_Verdict]:
        """Classify the exception; torch.distributed.checkpoint reports all ranks at once."""
        by_rank: dict[int, BaseException] = {self.ranks.rank: error}
        if isinstance(error, CheckpointException):
            by_rank = {rank: wrapped for rank, (wrapped, _) in error.failures.items()}
        host = socket.gethostname()
        return [
            _Verdict(rank, host, self._judge(wrapped, rank, host))
            for rank, wrapped in by_rank.items()
            if rank == self.ranks.rank
        ]

    def _judge(self, error: BaseException, rank: int, host: str) -> GlmDistError | RankFailure:
        if isinstance(error, GlmDistError):
            return error
        cause = operating_system_error(error)
        if cause is not None:
            return refusal(cause, task=self.task, path=self.key)
        return RankFailure(rank, host, f"{type(error).__name__}: {error}")


@contextmanager
def as_checkpoint_error(*, task: str, path: str) -> Iterator[None]:
    """Convert an error of the operating system to ``CheckpointError`` where it is raised.

    For code that runs inside torch.distributed.checkpoint: an exception loses its cause when it
    is sent to other ranks.

    Args:
        task: Task of the block, to follow "could not".
        path: Where.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = operating_system_error(error)
        if cause is None:
            raise
        raise refusal(cause, task=task, path=path) from error


def refusal(error: OSError, *, task: str, path: str) -> CheckpointError:
    """Explain an error of the operating system and its remedy.

    Args:
        error: Error of the operating system.
        task: Failed task, to follow "could not".
        path: File or folder of the error.
    """
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, _NOTHING_LOST)
    return CheckpointError(
        f"{path}: could not {task}: {reason}.\n{remedy}", key=path, value=reason, fix=remedy
    )


def operating_system_error(error: BaseException) -> OSError | None:
    """Return the OSError behind an exception; torch may only report that a write failed."""
    if isinstance(error, OSError):
        return error
    link = error if isinstance(error, RuntimeError) else None
    while link is not None:
        if isinstance(link, OSError):
            return link
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    return None


def _original(error: CheckpointException, rank: int) -> BaseException:
    """Return this rank's own exception, with its traceback, lost in transit, as a note."""
    wrapped, stack = error.failures[rank]
    wrapped.add_note("".join(["Raised at:", os.linesep, *stack.format()]))
    return wrapped


def _is_stop(error: BaseException | None) -> bool:
    """Return True if the process itself was asked to stop."""
    return isinstance(error, KeyboardInterrupt | SystemExit)
