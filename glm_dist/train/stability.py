"""Reactions to unstable steps: warn, stop, skip the step, or rewind to a checkpoint.

Every rank takes the same decision in the same step, because it decides by values that were reduced
over all ranks. Nothing here changes a step that is finite and usual.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, cast

import torch
import torch.distributed as dist

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.config.schema import NonFiniteAction, RunConfig, SpikeAction
from glm_dist.errors import TrainingError
from glm_dist.observe.metrics_file import REWOUND
from glm_dist.observe.phases import REWIND, PhaseClock
from glm_dist.observe.sinks import MetricSink
from glm_dist.train.divergence import (
    interventions_used_up,
    non_finite_step,
    overflow_at_smallest_scale,
    spike_error,
)
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.non_finite import describe, find, rows_in
from glm_dist.train.rows import StepBatches
from glm_dist.train.spikes import Spike, SpikeDetector
from glm_dist.train.state import restore_state
from glm_dist.train.step import Judge, StepResult

log = logging.getLogger(__name__)

STABILITY = "stability"
"""Key of the guard's memory in a checkpoint."""


@dataclass(frozen=True)
class Verdict:
    """Decision about a step."""

    is_dropped: bool = False
    """True if the step changed nothing and its loss must not be recorded."""
    back_to: int | None = None
    """Steps done after a rewind; None: no rewind."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Facts in the checkpoint that the run went back to."""


@dataclass(frozen=True)
class _Judgement:
    """Reduced values of a step before its update."""

    loss: float
    norm: float
    spike: Spike | None


class Guard:
    """Watches steps, drops bad ones, and rewinds; its memory survives in checkpoints."""

    def __init__(
        self,
        config: RunConfig,
        engine: TrainingEngine,
        rows: StepBatches,
        *,
        checkpoints: Path,
        sink: MetricSink,
        device: torch.device,
        saved: Mapping[str, Json],
        phases: PhaseClock,
        upkeep: Upkeep,
    ) -> None:
        """Continue an earlier attempt.

        Args:
            config: The run's configuration.
            engine: Model and optimizer of this rank.
            rows: Its rows.
            checkpoints: The run's checkpoints folder.
            sink: Takes events; does nothing on ranks other than 0.
            device: The rank's device.
            saved: What ``memory`` returned when the checkpoint was saved; may be empty.
            phases: Clock of the loop; loading a checkpoint has its own deadline.
            upkeep: Rules of this job for the run's checkpoints.
        """
        self._config = config
        self._stability = config.stability
        self._engine = engine
        self._rows = rows
        self._checkpoints = checkpoints
        self._sink = sink
        self._device = device
        self._phases = phases
        self._upkeep = upkeep
        self._detector = SpikeDetector(
            window=config.stability.window, deviations=config.stability.spike_deviations
        )
        self._restore(saved)
        self._interventions = int(cast(int, saved.get("interventions", 0)))
        self._judgement: _Judgement | None = None
        self.settles_saves: Callable[[], None] = lambda: None
        """Waits for the save in flight, which errors and rewinds refer to. Collective."""

    @property
    def judge(self) -> Judge | None:
        """Judgement of a step before its update; None if no update waits for one."""
        return self._judge if self._stability.judges_before_update else None

    @property
    def observes(self) -> bool:
        """True if ``observe`` needs the values of each step."""
        return self._stability.on_spike in (SpikeAction.warn, SpikeAction.stop)

    def memory(self) -> dict[str, Json]:
        """Return what a checkpoint stores."""
        return {
            "window": self._detector.state(),
            "interventions": self._interventions,
            "dropped": list(self._dropped),
            "passed_over": list(self._rows.passed_over),
        }

    def observe(self, steps: Iterable[tuple[int, float, float]]) -> None:
        """Judge steps after their updates.

        Args:
            steps: Step, loss and gradient norm, equal on all ranks.

        Raises:
            TrainingError: On every rank: a spike, and on_spike is stop.
        """
        for step, loss, norm in steps:
            if not (math.isfinite(loss) and math.isfinite(norm)):
                continue  # an fp16 overflow has no norm
            spike = self._detector.judge(loss, norm)
            self._detector.add(loss, norm)
            if spike is None:
                continue
            self._report_spike(step, spike)
            if self._stability.on_spike is SpikeAction.stop:
                self.settles_saves()
                rows = self._rows.rows_of(step, step)
                self._stop(step, spike_error(self._config, step=step, spike=str(spike), rows=rows))

    def settle(self, step: int, result: StepResult) -> Verdict:
        """Decide about a step that was just run. Collective over all ranks.

        Args:
            step: Its number.
            result: Its results on this rank.

        Raises:
            TrainingError: On every rank: it is not finite or a spike, and the configuration
                says stop, or the interventions are used up.
            CheckpointError: The checkpoint to rewind to could not be read.
        """
        judgement, self._judgement = self._judgement, None
        outcome = result.outcome
        if not outcome.is_skipped:
            if judgement is not None:
                self._detector.add(judgement.loss, judgement.norm)
            return Verdict()
        if judgement is not None and judgement.spike is not None:
            self.settles_saves()
            rewinds = self._stability.on_spike is SpikeAction.rewind
            self._report_spike(step, judgement.spike)
            error = interventions_used_up(
                self._config,
                step=step,
                reason=str(judgement.spike),
                rows=self._rows.rows_of(step, step),
            )
            return self._intervene(step, reason="spike", rewinds=rewinds, error=error)
        if outcome.is_recoverable and not self._has_bad_loss(result):
            return Verdict()
        return self._settle_non_finite(step, result, judgement)

    def _settle_non_finite(
        self, step: int, result: StepResult, judgement: _Judgement | None
    ) -> Verdict:
        self.settles_saves()
        findings = find(result, self._rows.indices(step))
        origin, rows = describe(findings), self._rows.rows_of(step, step)
        details = {"rows": rows, "origin": origin, "bad_rows": rows_in(findings)}
        self._sink.event(step, "non_finite", details)
        action, scale = self._stability.on_non_finite, self._engine.zero.loss_scale
        error: TrainingError
        if scale is not None and not result.outcome.is_refused:
            error = overflow_at_smallest_scale(
                self._config, step=step, scale=scale, origin=origin, rows=rows
            )
        else:
            is_loss = judgement is not None and not math.isfinite(judgement.loss)
            error = non_finite_step(
                self._config,
                step=step,
                what="loss" if is_loss else "gradient norm",
                value=judgement.loss if is_loss and judgement else float(result.outcome.norm),
                origin=origin,
                rows=rows,
            )
        if action is NonFiniteAction.stop:
            self._stop(step, error)
        if self._interventions >= self._stability.max_interventions:
            reason = str(error).partition("\n")[0]
            error = interventions_used_up(
                self._config, step=step, reason=f"{reason}\n{origin}", rows=rows
            )
        rewinds = action is NonFiniteAction.rewind
        return self._intervene(step, reason="non_finite", rewinds=rewinds, error=error)

    def _intervene(self, step: int, *, reason: str, rewinds: bool, error: TrainingError) -> Verdict:
        """Rewind or skip; raise ``error`` if the interventions are used up."""
        if self._interventions >= self._stability.max_interventions:
            self._stop(step, error)
        self._interventions += 1
        origin = None
        if rewinds:
            with self._phases(REWIND):
                origin = find_checkpoint(self._checkpoints, before=step, sets_aside=True)
        done = step - 1 if origin is None else origin.manifest.step
        rows = self._rows.rows_of(done + 1, step)
        self._sink.event(
            step,
            "skipped_rows",
            {
                "rows": rows,
                "reason": reason,
                "action": "skip" if origin is None else "rewind",
                "intervention": self._interventions,
            },
        )
        if origin is None:
            self._dropped.append(rows)
            return Verdict(is_dropped=True)
        with self._phases(REWIND):
            self._rows.pass_over(rows, done=done)
            restore_state(self._engine, origin)
        self._upkeep.went_back_to(origin.path)
        saved = origin.manifest.extra.get(STABILITY)
        self._restore(saved if isinstance(saved, dict) else {})
        self._sink.event(done, REWOUND, {"from_step": step, "rows": rows, "reason": reason})
        return Verdict(is_dropped=True, back_to=done, extra=origin.manifest.extra)

    def _judge(self, loss_share: torch.Tensor, norm: torch.Tensor) -> bool:
        """Judge a step before its update; see ``step.Judge``."""
        world = self._engine.groups.layout.world_size
        values = torch.stack([loss_share.double(), norm.to(self._device).double() / world])
        dist.all_reduce(values, group=self._engine.groups.world)
        loss, mean_norm = values.tolist()
        spike = self._detector.judge(loss, mean_norm) if math.isfinite(loss) else None
        self._judgement = _Judgement(loss, mean_norm, spike)
        return math.isfinite(loss) and spike is None

    def _has_bad_loss(self, result: StepResult) -> bool:
        """Return True if a step whose gradients overflowed in fp16 has no finite loss either.

        No loss scale can avoid that. Only looked at where such a step is not the end of the run.
        """
        if self._stability.on_non_finite is NonFiniteAction.stop:
            return False
        loss = result.loss_share.detach().clone()
        dist.all_reduce(loss, group=self._engine.groups.world)
        return not math.isfinite(float(loss))

    def _restore(self, saved: Mapping[str, Json]) -> None:
        """Restore the memory of a checkpoint, apart from the interventions."""
        window = saved.get("window")
        self._detector.restore(window if isinstance(window, dict) else {})
        self._dropped: list[str] = list(cast("Sequence[str]", saved.get("dropped", [])))

    def _stop(self, step: int, error: TrainingError) -> NoReturn:
        """Write an event, and raise."""
        self._sink.event(step, "stopped", {"reason": str(error).partition("\n")[0]})
        raise error

    def _report_spike(self, step: int, spike: Spike) -> None:
        rows = self._rows.rows_of(step, step)
        self._sink.event(
            step,
            "spike",
            {
                "what": spike.what,
                "value": spike.value,
                "usual": spike.usual,
                "deviations": round(spike.deviations, 1),
                "rows": rows,
            },
        )
