"""Periodic work between steps: records and validation; checkpoints are in ``saver.py``.

Every observer decides by the step and by values that are equal on all ranks, so all ranks take the
same branches.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from glm_dist.config.schema import RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.errors import TrainingError
from glm_dist.observe.metrics import (
    EPOCHS,
    GRAD_NORM,
    LEARNING_RATE,
    LOSS_SCALE,
    PEAK_MEMORY,
    SECONDS_PER_STEP,
    SKIPPED_STEPS,
    TRAIN,
    TRAIN_LOSS,
    VALID_TASK,
)
from glm_dist.observe.phases import RECORD, VALIDATE, PhaseClock
from glm_dist.observe.sinks import MetricSink
from glm_dist.observe.throughput import Throughput
from glm_dist.parallel.errors import on_this_rank
from glm_dist.train.divergence import non_finite_loss
from glm_dist.train.efficiency import Efficiency
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.rows import StepBatches
from glm_dist.train.stability import Guard
from glm_dist.train.step import StepResult
from glm_dist.train.step_done import StepDone as StepDone
from glm_dist.train.step_done import is_due as is_due
from glm_dist.train.workload import Workload

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Interface of periodic work between steps."""

    @property
    def phase(self) -> str:
        """Name of the phase that its time is charged to."""

    def due(self, done: StepDone) -> bool:
        """Return True if ``act`` must run after this step; equal on all ranks."""

    def act(self, done: StepDone) -> None:
        """Run the work. Collective over all ranks."""


class Recorder:
    """Writes the metrics of the steps since the last record."""

    phase = RECORD

    def __init__(
        self,
        config: RunConfig,
        engine: TrainingEngine,
        *,
        rows: StepBatches,
        guard: Guard,
        sink: MetricSink,
        phases: PhaseClock,
        first_step: int,
        device: torch.device,
        settle: Callable[[], None],
    ) -> None:
        """Start an empty record.

        Args:
            config: The run's configuration.
            engine: Gives loss scale and skipped steps.
            rows: Gives the passes over each corpus.
            guard: Judges the losses of steps, where the configuration asks for it.
            sink: Takes records; does nothing on ranks other than 0.
            phases: Clock of the loop.
            first_step: Steps done before this process began.
            device: The rank's device.
            settle: Waits for the save in flight, so that an error can name its checkpoint.
        """
        self._config = config
        self._engine = engine
        self._rows = rows
        self._guard = guard
        self._sink = sink
        self._device = device
        self._settle = settle
        self._phases = phases
        self._efficiency = Efficiency(config, groups=engine.groups, device=device)
        self.restart(first_step)

    def restart(self, done: int) -> None:
        """Forget the steps since the last record, and continue with the step after ``done``."""
        self._phases.take()
        self._efficiency.restart()
        self._throughput = Throughput(
            first_step=done,
            last_step=self._config.run.steps,
            world_size=self._engine.groups.layout.world_size,
            phases=self._phases,
        )
        self._results: dict[int, StepResult] = {}
        self._num_steps = self._num_observed = 0

    def add(
        self, step: int, result: StepResult, micro_batches: Sequence[MicroBatch], *, counts: bool
    ) -> None:
        """Add a step; nothing is read from the device yet.

        Args:
            step: Its number.
            result: Its results on this rank.
            micro_batches: Its rows on this rank.
            counts: Its loss counts; False for a step that was dropped.
        """
        self._num_steps += 1
        if counts:
            self._results[step] = result
        # Every replica reads equally many rows of the same length.
        positions = sum(batch.tokens.numel() for batch in micro_batches)
        self._throughput.step_done(positions * self._engine.groups.layout.data_parallel_size)
        self._efficiency.step_done(micro_batches)

    def due(self, done: StepDone) -> bool:
        """See ``Observer``; includes the first step, to show the initial loss."""
        at_once = done.is_last or done.stops
        interval = self._config.observe.log_interval
        return done.is_first or is_due(done.step, interval, at_once=at_once)

    def act(self, done: StepDone) -> None:
        """Write a record.

        Raises:
            TrainingError: On every rank: a loss is not finite.
        """
        record = self._losses() | {
            SKIPPED_STEPS: float(self._engine.zero.skipped_steps),
            LEARNING_RATE: done.learning_rate,
        }
        epochs = self._rows.epochs_before(done.step * self._config.batch.global_batch_size)
        record |= {EPOCHS + name: passes for name, passes in epochs.items()}
        loss_scale = self._engine.zero.loss_scale
        if loss_scale is not None:
            record[LOSS_SCALE] = loss_scale
        if self._device.type == "cuda":
            record[PEAK_MEMORY] = torch.cuda.max_memory_allocated(self._device) / 2**30
        speed = self._throughput.take()
        seconds = speed.get(SECONDS_PER_STEP, 0.0) * self._num_steps
        self._sink.write(done.step, record | speed | self._efficiency.take(seconds))
        self._results.clear()
        self._num_steps = self._num_observed = 0

    def check(self, step: int) -> None:
        """Check the losses of the steps since the last record.

        Raises:
            TrainingError: See ``act``.
        """
        self._losses()

    def _losses(self) -> dict[str, float]:
        """Reduce the losses since the last record; the loop's only host-device synchronisation."""
        if not self._results:
            return {}
        steps, results = list(self._results), list(self._results.values())
        names = self._engine.task.metric_names
        shares = torch.stack([result.loss_share for result in results])
        metrics = torch.stack([result.metrics for result in results]).sum(dim=0)
        sums = torch.cat([shares.sum().unsqueeze(0), metrics.flatten(), *self._each_step(shares)])
        dist.all_reduce(sums, group=self._engine.groups.world)
        loss = float(sums[0]) / len(results)
        if not math.isfinite(loss):
            self._settle()
            raise self._non_finite(steps, shares)
        end = 1 + metrics.numel()
        if self._guard.observes:
            by_step = zip(steps, *sums[end:].view(2, -1).tolist(), strict=True)
            new = list(by_step)[self._num_observed :]
            self._num_observed = len(steps)
            self._guard.observe(new)
        means = {
            TRAIN + name: total / count
            for name, (total, count) in zip(names, sums[1:end].view(-1, 2).tolist(), strict=True)
            if count > 0
        }
        return {TRAIN_LOSS: loss, GRAD_NORM: float(results[-1].pending.norm)} | means

    def _non_finite(self, steps: Sequence[int], shares: torch.Tensor) -> TrainingError:
        """Look for the steps whose loss is not finite, from loss shares [n]; all ranks do."""
        dist.all_reduce(shares, group=self._engine.groups.world)
        losses = zip(steps, shares.tolist(), strict=True)
        bad = [(step, loss) for step, loss in losses if not math.isfinite(loss)]
        first, last = bad[0][0], bad[-1][0]
        rows = self._rows.rows_of(first, last)
        return non_finite_loss(self._config, bad[0][1], first=first, last=last, rows=rows)

    def _each_step(self, shares: torch.Tensor) -> list[torch.Tensor]:
        """Return loss shares and mean norms by step [2, n], flat, if the guard needs them."""
        if not self._guard.observes:
            return []
        world = self._engine.groups.layout.world_size
        norms = [result.pending.norm.to(shares) / world for result in self._results.values()]
        return [shares, torch.stack(norms)]


Benchmarks = Callable[[TrainingEngine, int], dict[str, float]]
"""Measures a model after a step; collective over all ranks, equal on all of them."""


class Validator:
    """Measures the model on held-out data, as the workload does."""

    phase = VALIDATE

    def __init__(
        self,
        config: RunConfig,
        engine: TrainingEngine,
        workload: Workload,
        *,
        sink: MetricSink,
        device: torch.device,
        benchmarks: Benchmarks | None = None,
        stops: Callable[[], bool] = lambda: False,
        found: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
    ) -> None:
        """Store the inputs of validations.

        Args:
            config: The run's configuration.
            engine: Model of this rank.
            workload: Measures.
            sink: Takes records; does nothing on ranks other than 0.
            device: The rank's device.
            benchmarks: Measure more; None: nothing.
            stops: Vote on a stop, collective over all ranks; if agreed, the validation is given up.
            found: Called on all ranks with the step and the metrics of each validation.
        """
        self._config = config
        self._engine = engine
        self._workload = workload
        self._benchmarks = benchmarks
        self._stops = stops
        self._found = found
        self._sink = sink
        self._device = device

    def due(self, done: StepDone) -> bool:
        """See ``Observer``; skipped when a stop was requested, since time is short."""
        interval = self._config.evaluation.interval
        return not done.stops and is_due(done.step, interval, at_once=done.is_last)

    def act(self, done: StepDone) -> None:
        """Validate and write the metrics, all or none."""
        with on_this_rank(self._engine.groups.rank):
            found = self._workload.validate(
                self._engine, step=done.step, device=self._device, stops=self._stops
            )
            if found is None:
                log.info("gave up the validation of step=%d for a stop", done.step)
                return
            more = self._benchmarks(self._engine, done.step) if self._benchmarks else {}
        metrics = found | {VALID_TASK + name: value for name, value in more.items()}
        self._sink.write(done.step, metrics)
        self._found(done.step, metrics)
