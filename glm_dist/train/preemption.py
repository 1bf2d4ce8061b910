"""Graceful stop: a request to any rank ends the run on all ranks after a checkpoint.

Batch systems send a signal before they reclaim a node (SLURM: ``--signal=USR1@300``; TERM at the
limit or on preemption), often to some ranks earlier than to others. A rank that exited by itself
would leave the others in a collective, so the ranks vote: during start-up between its parts, then
after every step and between the batches of a validation. A launcher's death and the end of the
job's time count as requests too.
"""

import logging
import time

import torch
import torch.distributed as dist

from glm_dist.stop_signals import LAUNCHER_GONE, StopListener, describe
from glm_dist.train.time_limit import TimeLimit

log = logging.getLogger(__name__)

OUT_OF_TIME = 101
"""Code of a request by the clock; see ``StopListener.code`` for the others."""


class StoppedBeforeTraining(Exception):  # noqa: N818
    """A stop request during start-up, agreed by all ranks."""


class StopRequest:
    """Stop request of this process, shared with the other ranks by a vote."""

    def __init__(
        self, listener: StopListener | None = None, *, started: float | None = None
    ) -> None:
        """Take over the requests of this process; call it after libraries that install handlers.

        Args:
            listener: Has listened since the process began; None: begins now.
            started: Start of a run that is not the first one of this process, seconds since 1970.
        """
        self._listener = listener or StopListener()
        self._listener.arm()
        self.process_started = started
        """Start of the process as this run counts it; None: the process's own."""
        self._limit: TimeLimit | None = None
        self._agreed = 0
        self._is_announced = False
        self.has_trained = False
        """True once the first step has begun."""
        self.has_stopped = False
        """True once the run has ended because of a request."""
        self.stopped_at: int | None = None
        """Steps done when the run stopped; None if it did not, or not in training."""
        self.finished_at: int | None = None
        """Steps done if the run has finished before ``run.steps``; None otherwise."""

    @property
    def is_agreed(self) -> bool:
        """True once a vote was for a stop; equal on all ranks."""
        return self._agreed != 0

    @property
    def started(self) -> float:
        """Start of this process, or of a later run of it, seconds since 1970."""
        return self.process_started or self._listener.started

    @property
    def reason(self) -> str:
        """The agreed reason, in words."""
        if self._agreed != OUT_OF_TIME:
            return describe(self._agreed)
        return self._limit.name if self._limit else "time limit"

    def limit(self, limit: TimeLimit) -> None:
        """Stop before a limit; on rank 0, whose clock decides for all."""
        self._limit = limit
        limit.warn_of_grace()

    def begin_training(self) -> None:
        """Arm the handlers again, as a library may have taken them; the first step follows."""
        self._listener.arm()
        self.has_trained = True
        if self._limit is not None:
            self._limit.step_done(time.time())

    def agreed(self, *, step_done: bool = True) -> bool:
        """Return True if any rank was asked to stop. Collective over all ranks, on the host.

        Args:
            step_done: False inside a step, as between the batches of a validation.
        """
        code, now = self._listener.code, time.time()
        if self._limit is not None:
            if step_done:
                self._limit.step_done(now)
            if not code and self._limit.is_near(now, steps=int(step_done)):
                code = OUT_OF_TIME
        vote = torch.tensor(code)
        dist.all_reduce(vote, op=dist.ReduceOp.MAX)
        self._agreed = self._agreed or int(vote)
        if code and not self._is_announced:
            self._is_announced = True
            self._announce(code)
        return self.is_agreed

    def raise_if_agreed(self) -> None:
        """End the start-up if any rank was asked to stop. Collective over all ranks.

        Raises:
            StoppedBeforeTraining: On every rank.
        """
        if self.agreed(step_done=False):
            raise StoppedBeforeTraining

    def stop(self, step: int | None) -> None:
        """Note that the run ends here.

        Args:
            step: Steps done; None before training.
        """
        self.has_stopped, self.stopped_at = True, step

    def finish(self, step: int) -> None:
        """Note that the run is finished here, before ``run.steps``.

        Args:
            step: Steps done.
        """
        self.finished_at = step

    def save_began(self) -> None:
        """Note that a save in the background is in flight."""
        if self._limit is not None:
            self._limit.save_began(time.time())

    def save_done(self, seconds: float, waited: bool) -> None:
        """Note the length of a save, which the last one before a limit may take as well.

        Args:
            seconds: From the end of a step until the checkpoint was complete.
            waited: False if training went on meanwhile.
        """
        if self._limit is not None:
            self._limit.save_done(seconds, waited=waited)
            self._limit.warn_of_grace()

    def _announce(self, code: int) -> None:
        if code == OUT_OF_TIME and self._limit is not None:
            log.warning(
                "%s leaves time for one save (%.0f s); stopping after this step",
                self._limit.name,
                self._limit.save_seconds,
            )
        elif code == LAUNCHER_GONE:
            log.warning("the launcher of this rank has ended; stopping after this step")
        else:
            log.warning("received signal=%s; stopping after this step", describe(code))
