"""How ranks fail together: what goes wrong on one of them is raised on all of them.

A lone exception between two collectives is a hang for the others. Local work (files, mostly) runs
inside ``Ranks.together``, which ends with one small exchange and one common verdict.
"""

import errno
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from glm_dist.errors import CheckpointError, GlmDistError

T = TypeVar("T")

_FIXES = {
    errno.ENOSPC: "free space there, or point paths.runs at a file system with room",
    errno.EDQUOT: "raise the quota there, or point paths.runs at a file system with room",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EACCES: "make it writable for this user, or point paths.runs elsewhere",
    errno.EPERM: "make it writable for this user, or point paths.runs elsewhere",
    errno.EROFS: "point paths.runs at a file system that is not read-only",
}
_FALLBACK_FIX = "see the cause named above; the checkpoints saved before are untouched"


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
        """Everybody's value, in rank order, on every rank."""
        if not self.is_joined:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_first(self, task: str, key: str, action: Callable[[], T]) -> T:
        """Run an action on rank 0 only; its result, or its failure, reaches every rank."""
        results: list[T] = []
        with self.together(task, key):
            if self.rank == 0:
                results.append(action())
        return next(iter(self.gather(results)[0]))

    def together(self, task: str, key: str) -> "Together":
        """Context in which a failure of any rank is raised on all of them.

        Errors of this package keep their class; others become a CheckpointError.

        The block holds local work, or one collective that already fails on every rank.

        Args:
            task: What every rank is expected to do, to follow "every rank to".
            key: Path at stake.
        """
        return Together(self, task, key)


class Together:
    """See ``Ranks.together``."""

    def __init__(self, ranks: Ranks, task: str, key: str) -> None:
        """Keep what the error will name."""
        self.ranks = ranks
        self.task = task
        self.key = key

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Exchange verdicts; raise the same error everywhere if one rank failed."""
        mine = {} if error is None else self._failures(error)
        failures = {rank: e for each in self.ranks.gather(mine) for rank, e in each.items()}
        if not failures or _is_stop(error):
            return
        distinct = {str(e): e for _, e in sorted(failures.items())}
        if len(distinct) == 1:
            raise next(iter(distinct.values())) from error
        raise CheckpointError(
            key=self.key,
            found="; ".join(str(e.found) for e in distinct.values()),
            expected=f"every rank to {self.task}",
            fix=next(iter(distinct.values())).fix,
        ) from error

    def _failures(self, error: BaseException) -> dict[int, GlmDistError]:
        """Failures by rank; torch.distributed.checkpoint reports those of all ranks at once."""
        by_rank: dict[int, BaseException] = {self.ranks.rank: error}
        if isinstance(error, CheckpointException):
            by_rank = {rank: wrapped for rank, (wrapped, _) in error.failures.items()}
        return {r: explain(e, rank=r, task=self.task, key=self.key) for r, e in by_rank.items()}


class Explained:
    """Context that turns any failure into the CheckpointError a user can act on.

    For code that runs inside torch.distributed.checkpoint: an exception's cause is lost when it is
    sent to other ranks, so it is read here, where it happened.
    """

    def __init__(self, *, rank: int, task: str, key: str) -> None:
        """Keep what the error will name; see ``explain``."""
        self.rank = rank
        self.task = task
        self.key = key

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Replace the failure, if there is one."""
        if isinstance(error, Exception):
            raise explain(error, rank=self.rank, task=self.task, key=self.key) from error


def explain(error: BaseException, *, rank: int, task: str, key: str) -> GlmDistError:
    """A failure of one rank in words: its root cause, and what the user can do about it.

    Args:
        error: Whatever was raised; what is in words already stays as it is.
        rank: Where.
        task: What every rank is expected to do, to follow "every rank to".
        key: Path at stake.
    """
    if isinstance(error, GlmDistError):
        return error
    cause = _root_cause(error)
    number = cause.errno if isinstance(cause, OSError) else None
    return CheckpointError(
        key=key,
        found=f"{type(cause).__name__} on rank {rank}: {cause}",
        expected=f"every rank to {task}",
        fix=_FIXES.get(number or 0, _FALLBACK_FIX),
    )


def _is_stop(error: BaseException | None) -> bool:
    """Whether the process itself is asked to end, which is no checkpoint's fault."""
    return isinstance(error, KeyboardInterrupt | SystemExit)


def _root_cause(error: BaseException) -> BaseException:
    """The operating system's reason, where torch only says that a write failed."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            return link
        link = link.__cause__ or link.__context__
    return error
