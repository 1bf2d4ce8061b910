"""The step that the host has queued and whose outcome it has not read yet.

Whether an update was applied is known to the device only. Reading it at once would let the device
run dry in every step. So the loop queues step k + 1 before it settles step k, and settles at once
only where something reads the model, the losses or the outcome after step k, or changes with it.

What is decided late is decided as before. A step that is dropped changes no weight, moment or
update count, so step k + 1 starts from what it would have started from; its learning rate is chosen
on the device between the two that the host knows. A run that ends ends one step later, and saves as
little: whatever saves, settles first. A rewind gives up the younger step as well. All ranks settle
after the same calls, because what they decide by is equal on all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glm_dist.data.micro_batch import MicroBatch
from glm_dist.train.observers import Recorder
from glm_dist.train.stability import Guard, Verdict
from glm_dist.train.step import StepResult


@dataclass(frozen=True)
class QueuedStep:
    """A step on its way to the device."""

    step: int
    result: StepResult
    micro_batches: Sequence[MicroBatch]
    """Its rows on this rank."""


class StepQueue:
    """At most one step whose outcome is not known."""

    def __init__(self, guard: Guard, recorder: Recorder) -> None:
        """Begin without a step.

        Args:
            guard: Decides about settled steps.
            recorder: Takes them.
        """
        self._guard = guard
        self._recorder = recorder
        self._waiting: QueuedStep | None = None
        self._was_dropped = False

    @property
    def is_empty(self) -> bool:
        """True if the outcome of every step is known."""
        return self._waiting is None

    @property
    def was_dropped(self) -> bool:
        """True if the update of the step settled last was dropped."""
        return self._was_dropped

    def add(self, queued: QueuedStep) -> Verdict:
        """Take a step, and settle the one before. Collective over all ranks.

        Raises:
            TrainingError: See ``Guard.settle``.
        """
        older, self._waiting = self._waiting, queued
        return Verdict() if older is None else self._settle(older)

    def settle(self) -> Verdict:
        """Settle the step that waits, if there is one. Collective over all ranks.

        Raises:
            TrainingError: See ``Guard.settle``.
        """
        queued, self._waiting = self._waiting, None
        return Verdict() if queued is None else self._settle(queued)

    def _settle(self, queued: QueuedStep) -> Verdict:
        outcome = queued.result.outcome
        self._was_dropped = outcome.is_skipped
        if outcome.is_skipped and self._waiting is not None:
            self._waiting.result.pending.settle()  # the device ends it before a rewind
        verdict = self._guard.settle(queued.step, queued.result)
        if verdict.back_to is not None:
            self._waiting = None
        else:
            self._recorder.add(
                queued.step,
                queued.result,
                queued.micro_batches,
                counts=not verdict.is_dropped,
            )
        return verdict
