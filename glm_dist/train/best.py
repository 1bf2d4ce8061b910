"""The best validation of a run: which checkpoint it keeps, and when it stops without improvement.

The memory goes into every checkpoint, so a resumed or rewound run decides as if it had never been
interrupted. ``best.json`` follows once the checkpoint of the best validation is complete; until
then the one before stays too.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from glm_dist.checkpoint.best import Best, write_best
from glm_dist.checkpoint.folders import MANIFEST_NAME, step_name
from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.config.schema import RunConfig
from glm_dist.files import is_file
from glm_dist.observe.sinks import MetricSink
from glm_dist.parallel.errors import Ranks
from glm_dist.train.step_done import is_due
from glm_dist.train.workload import Selection

log = logging.getLogger(__name__)

BEST = "best"
"""Key of the memory in a checkpoint."""


def best_step(extra: Mapping[str, Json]) -> int | None:
    """Return the step of the best checkpoint by the facts in a checkpoint; None if it has none."""
    memory = extra.get(BEST)
    step = memory.get("step") if isinstance(memory, dict) else None
    return step if isinstance(step, int) else None


class BestTracker:
    """Best validation so far, and the validations since; equal on all ranks."""

    def __init__(
        self,
        config: RunConfig,
        selection: Selection,
        directory: Path,
        *,
        upkeep: Upkeep,
        sink: MetricSink,
        saved: Mapping[str, Json],
        ignores: int | None,
    ) -> None:
        """Continue from the memory in a checkpoint. Collective over all ranks.

        Args:
            config: The run's configuration.
            selection: Metric that is compared.
            directory: The run's checkpoints folder.
            upkeep: Rules of this job for the run's checkpoints; the best one stays.
            sink: Takes an event for each improvement; does nothing on ranks other than 0.
            saved: Facts in the checkpoint that the run continues from; empty for a new run.
            ignores: Step whose validation does not count, because the run has no checkpoint of it;
                None: all count.
        """
        self._selection = selection
        self._directory = directory
        self._upkeep = upkeep
        self._sink = sink
        self._ignores = ignores
        self._interval = config.evaluation.interval
        self._patience = config.task.patience
        self._keeps = config.checkpoint.keep_best and config.checkpoint.interval > 0
        self._is_on = self._keeps or self._patience > 0
        self._says_missing = True
        self.restore(saved)

    @property
    def is_exhausted(self) -> bool:
        """True if the run ends because ``task.patience`` validations brought no improvement."""
        return 0 < self._patience <= self._waited

    @property
    def reason(self) -> str:
        """The end for lack of improvement, in words."""
        return (
            f"{self._waited} validations without a better {self._selection.metric} than"
            f" {self._value:.6g} of step {self._step}"
        )

    def memory(self) -> dict[str, Json]:
        """Return the entry of a checkpoint; empty if nothing is tracked."""
        if not self._is_on:
            return {}
        return {
            BEST: {
                "metric": self._selection.metric,
                "step": self._step,
                "value": self._value,
                "waited": self._waited,
                "validated": self._validated,
            }
        }

    def restore(self, saved: Mapping[str, Json]) -> None:
        """Go on from the memory in a checkpoint. Collective over all ranks.

        Args:
            saved: Facts in the checkpoint.
        """
        self._step: int | None = None
        self._value: float | None = None
        self._waited = self._validated = 0
        self._pending: int | None = None
        self._complete: Best | None = None
        memory = saved.get(BEST)
        if not self._is_on:
            return
        if isinstance(memory, dict) and memory["metric"] == self._selection.metric:
            self._step, self._value = memory["step"], memory["value"]  # type: ignore[assignment]
            self._waited = int(str(memory["waited"]))
            self._validated = int(str(memory["validated"]))
        if self._keeps:
            self._complete = self._find_checkpoint()
            if self._complete is None:  # of the checkpoints that are left, the next one counts
                self._step = self._value = None
            self._point()

    def lacks(self, step: int) -> bool:
        """Return True if a stop has prevented the validation of the step that the run goes on from.

        Args:
            step: Steps done.
        """
        is_missed = is_due(step, self._interval, at_once=False) and step > self._validated
        return self._is_on and step > 0 and step != self._ignores and is_missed

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a validation.

        Args:
            step: Steps done.
            metrics: Full metric name -> value, equal on all ranks.
        """
        if not self._is_on or step == self._ignores:
            return
        self._validated = step
        value = metrics.get(self._selection.metric)
        if value is None and self._says_missing:
            self._says_missing = False
            log.warning("validation has no %s; no checkpoint is the best", self._selection.metric)
        if value is None or not math.isfinite(value) or not self._improves(value):
            self._waited += 1
            return
        self._step, self._value, self._waited = step, value, 0
        log.info("best so far step=%d %s=%.6g", step, self._selection.metric, value)
        self._sink.event(step, BEST, {"metric": self._selection.metric, "value": value})
        if self._keeps:
            self._pending = step
            self._upkeep.best.add(step)

    def wants(self, step: int) -> bool:
        """Return True if a step must be saved because it is the best."""
        return self._pending == step

    def saved(self, step: int) -> None:
        """Note that the checkpoint of a step is complete. Collective over all ranks."""
        if self._pending != step or self._value is None:
            return
        self._pending = None
        self._complete = Best(step, self._selection.metric, self._value)
        self._point()

    def failed(self, step: int) -> None:
        """Note that a step could not be saved: the best is the one before that was."""
        if self._pending != step:
            return
        self._pending = None
        self._upkeep.best.discard(step)
        before = self._complete
        self._step = None if before is None else before.step
        self._value = None if before is None else before.value

    def _improves(self, value: float) -> bool:
        if self._value is None:
            return True
        larger = self._selection.larger_is_better
        return value > self._value if larger else value < self._value

    def _find_checkpoint(self) -> Best | None:
        """Return the best checkpoint, if the run still has it."""
        step, value = self._step, self._value
        if step is None or value is None:
            return None
        file = self._directory / step_name(step) / MANIFEST_NAME
        if Ranks(None).on_first("look for the best checkpoint", str(file), lambda: is_file(file)):
            return Best(step, self._selection.metric, value)
        log.warning("the best checkpoint is gone path=%s; another one is chosen", file.parent)
        return None

    def _point(self) -> None:
        """Let ``best.json`` name the complete best checkpoint, which alone stays as the best."""

        def write() -> None:
            self._upkeep.check()
            if self._directory.is_dir():
                write_best(self._directory, self._complete)

        Ranks(None).on_first("name the best checkpoint", str(self._directory), write)
        self._upkeep.best.clear()
        if self._complete is not None:
            self._upkeep.best.add(self._complete.step)
