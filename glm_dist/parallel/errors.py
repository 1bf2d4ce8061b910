"""Collective error handling: an error on one rank is raised on all ranks.

A lone exception between two collectives is a hang for the others. Local work (files, mostly) runs
inside ``Ranks.together``, which ends with one small exchange and one common verdict:

- a mistake of the user (``GlmDistError``) is raised as it is on every rank;
- what the operating system refuses (``OSError``) becomes a message that names path and remedy;
- anything else is a bug: the rank that met it keeps its exception, the others raise a
  ``RankFailure`` that names it.
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

from glm_dist.errors import EXIT_BUG, EXIT_USER_ERROR, CheckpointError, GlmDistError

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
_NOTHING_LOST = "Checkpoints saved before are intact; start the same command again to continue."


class RankFailure(Exception):  # noqa: N818
    """The news that another rank failed, on a rank that did not."""

    def __init__(self, rank: int, host: str, summary: str, *, is_bug: bool = True) -> None:
        """Name the rank.

        Args:
            rank: The rank that failed.
            host: Its host.
            summary: What it met, in one line.
            is_bug: False for a mistake of the user that only that rank met.
        """
        super().__init__(rank, host, summary, is_bug)
        self.rank = rank
        self.host = host
        self.summary = summary
        self.is_bug = is_bug

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with every field."""
        return (_rank_failure, self.args)

    @property
    def status(self) -> int:
        """Exit status of every rank of the job."""
        return EXIT_BUG if self.is_bug else EXIT_USER_ERROR

    def __str__(self) -> str:
        """Say who failed, with what, and where to read more."""
        log_file = f"log/rank_{self.rank:04d}.log"
        return f"rank {self.rank} on {self.host} failed: {self.summary} (see its {log_file})"


def _rank_failure(rank: int, host: str, summary: str, is_bug: bool) -> RankFailure:
    return RankFailure(rank, host, summary, is_bug=is_bug)


@contextmanager
def on_this_rank(rank: int) -> Iterator[None]:
    """Mark the user's mistakes that are met in the block as this rank's alone.

    Others do not raise them, so whoever reports them names rank and host.

    Args:
        rank: This rank.
    """
    try:
        yield
    except GlmDistError as error:
        error.rank = rank
        raise


class Ranks:
    """The processes that save or load together; one process where none were joined."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """Take part.

        Args:
            group: Holds every rank of the job, gloo rather than NCCL (objects travel through it);
                None means the default group, or this process alone if there is none.
        """
        self.group = group
        self.is_joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if self.is_joined else 0
        self.size = dist.get_world_size(group) if self.is_joined else 1

    def gather(self, value: T) -> list[T]:
        """Return everybody's value, in rank order, on every rank."""
        if not self.is_joined:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, task: str, key: str, action: Callable[[], T]) -> T:
        """Run an action on rank 0 only; its result, or its failure, reaches every rank."""
        results: list[T] = []
        with Together(self, task, key, names_rank=False):
            if self.rank == 0:
                results.append(action())
        return next(iter(self.gather(results)[0]))

    def together(self, task: str, key: str) -> "Together":
        """Return a context in which a failure of any rank is raised on all of them.

        The block holds local work, or one collective that already fails on every rank.

        Args:
            task: What the block does, to follow "could not".
            key: Path at stake.
        """
        return Together(self, task, key)


@dataclass(frozen=True)
class _Verdict:
    """Outcome of a block on one rank."""

    rank: int
    host: str
    error: GlmDistError | RankFailure


class Together:
    """See ``Ranks.together``."""

    def __init__(self, ranks: Ranks, task: str, key: str, *, names_rank: bool = True) -> None:
        """Keep what the error will name.

        Args:
            ranks: Who takes part.
            task: What the block does, to follow "could not".
            key: Path at stake.
            names_rank: Say which rank and host an error is of if others did not meet it.
        """
        self.ranks = ranks
        self.task = task
        self.key = key
        self.names_rank = names_rank

    def __enter__(self) -> None:
        """Nothing to prepare."""

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
        """Turn the mistakes that ranks met into one, equal on every rank."""
        by_text = {str(v.error): v for v in reversed(verdicts)}
        first = verdicts[0].error
        assert isinstance(first, GlmDistError)
        is_everywhere = len(verdicts) == self.ranks.size
        if len(by_text) == 1 and (is_everywhere or not self.names_rank):
            return first
        lines = [f"Rank {v.rank} on {v.host}: {text}" for text, v in reversed(by_text.items())]
        return type(first)("\n".join(lines), key=first.key, value=first.value, fix=first.fix)

    def _verdicts(self, error: BaseException) -> list[_Verdict]:
        """Judge what was raised; torch.distributed.checkpoint reports all ranks at once."""
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
    """Turn a refusal of the operating system into words, where it happens.

    For code that runs inside torch.distributed.checkpoint: an exception's cause is lost when it is
    sent to other ranks.

    Args:
        task: What the block does, to follow "could not".
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
    """Explain what the operating system refused, and what the user can do about it.

    Args:
        error: What was raised.
        task: What was tried, to follow "could not".
        path: Where.
    """
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, _NOTHING_LOST)
    return CheckpointError(
        f"{path}: could not {task}: {reason}.\n{remedy}", key=path, value=reason, fix=remedy
    )


def operating_system_error(error: BaseException) -> OSError | None:
    """Return the refusal behind an exception; torch may only say that a write failed."""
    if isinstance(error, OSError):
        return error
    link = error if isinstance(error, RuntimeError) else None
    while link is not None:
        if isinstance(link, OSError):
            return link
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    return None


def _original(error: CheckpointException, rank: int) -> BaseException:
    """Return this rank's own exception; its way back cost it the traceback, so that is a note."""
    wrapped, stack = error.failures[rank]
    wrapped.add_note("".join(["Raised at:", os.linesep, *stack.format()]))
    return wrapped


def _is_stop(error: BaseException | None) -> bool:
    """Return True if the process itself is asked to end."""
    return isinstance(error, KeyboardInterrupt | SystemExit)
