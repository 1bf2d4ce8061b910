"""Checkpoints between steps: training waits for each save, or only for a copy of its state.

In the background (``checkpoint.background``) a save that fails does not end training: the next one
tries again, and the run ends if that is the last one or the third that failed in a row.
"""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from glm_dist.checkpoint.background import (
    BackgroundWriter,
    HungSaveError,
    SaveOutcome,
    folder_bytes,
)
from glm_dist.checkpoint.folders import step_name
from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.config.schema import RunConfig
from glm_dist.errors import CheckpointError, GlmDistError, TrainingError
from glm_dist.observe.fence import LostRunFolderError
from glm_dist.observe.phases import SAVE, PhaseClock
from glm_dist.observe.sinks import MetricSink
from glm_dist.parallel.errors import RankFailure
from glm_dist.train.best import BestTracker
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.observers import StepDone, is_due
from glm_dist.train.state import CheckpointWriter, save_state, training_fragments
from glm_dist.train.uploads import Uploads

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Saves in a row that may fail; one failure is often a disk that is full for a moment."""


class Saver:
    """Writes checkpoints."""

    phase = SAVE

    def __init__(
        self,
        config: RunConfig,
        engine: TrainingEngine,
        directory: Path,
        *,
        identity: Mapping[str, Json],
        check: Callable[[int], None],
        sink: MetricSink,
        upkeep: Upkeep,
        device: torch.device,
        phases: PhaseClock,
        began: Callable[[], None] = lambda: None,
        saved: Callable[[float, bool], None] = lambda seconds, waited: None,
        best: BestTracker,
        uploads: Uploads | None = None,
    ) -> None:
        """Store the inputs of saves; reserve memory for those in the background. Collective.

        Args:
            config: The run's configuration.
            engine: Model and optimizer of this rank.
            directory: The run's checkpoints folder.
            identity: Facts about the run stored in a checkpoint, such as the data's fingerprint.
            check: Raises if the loss of a step up to the given one is not finite.
            sink: Takes an event for each checkpoint.
            upkeep: Rules of this job for the run's checkpoints.
            device: The rank's device.
            phases: Clock of the loop; each turn of a wait begins the phase again, because the save
                has its own deadline.
            began: Called when a save in the background has begun.
            best: Asks for checkpoints of the best steps, and learns which are complete.
            saved: Called with the seconds of each save, and True if training waited for it.
            uploads: Takes each checkpoint; None: the run has no store.

        Raises:
            CheckpointError: On every rank, if one has too little memory.
        """
        self._config = config
        self._engine = engine
        self._directory = directory
        self._identity = identity
        self._check = check
        self._turn = partial(phases, SAVE)
        self._began = began
        self._saved = saved
        self._uploads = uploads
        self._best = best
        self._sink = sink
        self._upkeep = upkeep
        self._stall = 0.0
        self._failures = 0
        self._writer: BackgroundWriter | None = None
        if config.checkpoint.background and config.checkpoint.interval > 0:
            minutes = config.checkpoint.timeout_minutes or config.parallel.timeout_minutes
            self._writer = BackgroundWriter(device, timeout=timedelta(minutes=minutes))
            self._reserve(self._writer)

    def due(self, done: StepDone) -> bool:
        """See ``Observer``; includes every step in which a save is in flight."""
        is_busy = self._writer is not None and self._writer.is_busy
        return is_busy or self._begins(done)

    def _begins(self, done: StepDone) -> bool:
        at_once = _is_final(done) or self._best.wants(done.step)
        return is_due(done.step, self._config.checkpoint.interval, at_once=at_once)

    def act(self, done: StepDone) -> None:
        """Save, or see how the save in flight is.

        Raises:
            CheckpointError: On every rank, if any rank failed to write. In the background only
                after the last step and after the third failure in a row.
            TrainingError: On every rank: a loss is not finite.
        """
        started = time.monotonic()
        if self._writer is None:
            self._save_and_wait(done)
        elif self._begins(done):
            self._save_behind(done, self._writer)
        else:
            outcome = self._writer.poll()
            self._stall += time.monotonic() - started
            self._take(outcome)

    def finish(self) -> None:
        """Wait for the save in flight and record it. Collective over all ranks.

        Raises:
            CheckpointError: See ``act``.
        """
        if self._writer is not None:
            self._take(self._writer.wait(self._turn))

    def settle(self) -> None:
        """Wait for the save in flight before or after an error that all ranks raise.

        Not collective. No save follows.
        """
        if self._writer is not None and self._writer.is_busy:
            outcome = self._writer.settle(self._turn)
            if outcome is not None:
                self._record(outcome)
        if self._uploads is not None:
            self._uploads.settle()

    def finish_uploads(self) -> None:
        """Wait for uploads after the last save, and record them. Collective over all ranks."""
        if self._uploads is not None:
            self._uploads.wait(self._turn)

    def _save_and_wait(self, done: StepDone) -> None:
        started = time.monotonic()
        self._check(done.step)
        path = self._save(done, save_checkpoint)
        seconds = time.monotonic() - started
        num_bytes = folder_bytes(path) if self._engine.groups.rank == 0 else 0
        self._stall = seconds
        self._record(SaveOutcome(done.step, path, seconds, num_bytes))
        self._best.saved(done.step)
        self.finish_uploads()

    def _save_behind(self, done: StepDone, writer: BackgroundWriter) -> None:
        """Copy the state and begin to write it; after the last step also wait for the end."""
        started = time.monotonic()
        self._check(done.step)
        previous = writer.wait(self._turn)
        waited = time.monotonic() - started
        is_final = _is_final(done)
        self._take(previous, raises=not is_final)
        is_slow = previous is not None and waited > 1.0 and not is_final
        if previous is not None and is_slow and self._engine.groups.rank == 0:
            log.warning(
                "waited for the save of step %d seconds=%.1f; a larger checkpoint.interval avoids"
                " it",
                previous.step,
                waited,
            )
        failed: SaveOutcome | None = None
        try:
            self._save(done, writer.start)
            self._began()
        except HungSaveError as error:
            failed = SaveOutcome(done.step, self._directory / step_name(done.step), 0.0, 0, error)
        outcome = failed or (writer.wait(self._turn) if is_final else None)
        self._stall += time.monotonic() - started
        self._take_last(outcome) if is_final else self._take(outcome)

    def _save(self, done: StepDone, write: CheckpointWriter) -> Path:
        rows = done.step * self._config.batch.global_batch_size
        return save_state(
            self._engine,
            self._directory,
            step=done.step,
            extra={**self._identity, "rows": rows},
            keep_last=self._config.checkpoint.keep_last,
            upkeep=self._upkeep,
            write=write,
        )

    def _take_last(self, outcome: SaveOutcome | None) -> None:
        """Record the outcome of the run's last save; raise its error."""
        if outcome is not None and outcome.error is not None:
            self._record(outcome, is_raised=True)
            raise outcome.error
        self._take(outcome)

    def _take(self, outcome: SaveOutcome | None, *, raises: bool = True) -> None:
        """Record an outcome; raise after too many failures, unless another save is tried now.

        Raises:
            CheckpointError: On every rank.
            TrainingError: On every rank: the state was not fit to be saved.
        """
        if outcome is None:
            return
        if isinstance(outcome.error, LostRunFolderError):
            raise outcome.error
        if isinstance(outcome.error, TrainingError):
            self._record(outcome, is_raised=True)
            raise outcome.error
        self._failures = 0 if outcome.error is None else self._failures + 1
        is_raised = raises and self._failures >= MAX_FAILURES
        self._record(outcome, is_raised=is_raised)
        (self._best.saved if outcome.error is None else self._best.failed)(outcome.step)
        if not is_raised:
            return
        reason = str(outcome.error)
        raise CheckpointError(
            f"{MAX_FAILURES} checkpoints in a row could not be written; training stops so that no"
            f" more work can be lost.\n{reason}",
            key=str(outcome.path),
            value=reason,
            fix=getattr(outcome.error, "fix", ""),
        )

    def _record(self, outcome: SaveOutcome, *, is_raised: bool = False) -> None:
        """Write the event, and an error that nothing raises into the log."""
        if isinstance(outcome.error, LostRunFolderError):
            return  # the folder is another job's
        stall, self._stall = self._stall, 0.0
        details: dict[str, str | float] = {
            "path": str(outcome.path),
            "seconds": round(outcome.seconds, 2),
            "stall": round(stall, 3),
        }
        if outcome.error is None:
            self._saved(outcome.seconds, self._writer is None)
            details["bytes"] = outcome.num_bytes
            self._sink.event(outcome.step, "checkpoint", details)
            if self._uploads is not None:
                self._uploads.offer(outcome.path)
            return
        reason = " ".join(str(outcome.error).split())
        self._sink.event(outcome.step, "checkpoint_failed", {**details, "reason": reason})
        if is_raised:
            return
        is_shared = isinstance(outcome.error, GlmDistError | RankFailure)
        log.log(
            logging.ERROR if self._engine.groups.rank == 0 or not is_shared else logging.INFO,
            "the checkpoint of step %d failed: %s",
            outcome.step,
            outcome.error,
            exc_info=None if is_shared else outcome.error,
        )

    def _reserve(self, writer: BackgroundWriter) -> None:
        """Reserve memory with the moments that the first update would create."""
        self._engine.zero.ensure_moments()
        started = time.monotonic()
        num_bytes = writer.reserve(training_fragments(self._engine))
        log.info(
            "reserved memory for checkpoints gib=%.2f seconds=%.1f",
            num_bytes / 2**30,
            time.monotonic() - started,
        )


def _is_final(done: StepDone) -> bool:
    return done.is_last or done.stops
