"""The training loop: rows in, steps, and at their intervals records, validation and checkpoints.

Everything that decides a number is elsewhere; this file decides when. All ranks take the same
branches, because every branch hangs on the step alone or on values that were reduced over all.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from glm_dist.checkpoint.manifest import Json
from glm_dist.config.schema import RunConfig
from glm_dist.data.rows import MicroBatch, Row
from glm_dist.errors import GlmDistError, TrainingError
from glm_dist.observe.metrics import (
    GRAD_NORM,
    LEARNING_RATE,
    LOSS_SCALE,
    PEAK_MEMORY,
    SECONDS_PER_STEP,
    SKIPPED_STEPS,
    TRAIN_LOSS,
    VALID_LOSS,
)
from glm_dist.observe.sinks import MetricSink
from glm_dist.observe.throughput import Throughput
from glm_dist.optim.lr_schedule import learning_rate
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.rng import seed_step
from glm_dist.train.efficiency import Efficiency
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.evaluate import validation_losses
from glm_dist.train.preemption import StopRequest
from glm_dist.train.state import save_state
from glm_dist.train.step import StepResult, train_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """What the loop works with on this rank."""

    config: RunConfig
    engine: TrainingEngine
    batches: Iterator[Sequence[MicroBatch]]
    """Micro-batches of this replica, one item per step, from the first step to do."""
    validation_row: Callable[[str, int], Row]
    objectives: Sequence[str]
    """Objectives that validation measures."""
    stop_request: StopRequest
    sink: MetricSink
    """Takes records; does nothing on ranks other than 0."""
    checkpoints: Path
    identity: Mapping[str, Json]
    """What a checkpoint says of the run, such as the data's fingerprint."""
    device: torch.device


def train(run: TrainingRun, *, first_step: int) -> bool:
    """Train to ``run.steps``, or until somebody asks to stop. Collective over all ranks.

    Args:
        run: What to work with.
        first_step: Steps already done.

    Returns:
        Whether the run is finished; if not, its newest checkpoint is of the last step done, unless
        checkpoint.interval is 0.

    Raises:
        TrainingError: The loss or a gradient norm is not finite; no checkpoint was written since.
        CheckpointError: A checkpoint could not be written.
    """
    config, groups = run.config, run.engine.groups
    if first_step >= config.run.steps:
        log.info("nothing left to train step=%d run.steps=%d", first_step, config.run.steps)
    throughput = Throughput(
        first_step=first_step,
        last_step=config.run.steps,
        world_size=groups.layout.world_size,
    )
    efficiency = Efficiency(config, groups=groups, device=run.device)
    results: list[StepResult] = []
    for done in range(first_step, config.run.steps):
        seed_step(config.run.seed, done, coordinates=groups.coordinates)
        with throughput.waiting("data"), _told(groups):
            micro_batches = next(run.batches)
        rate = _rate(run, done)
        results.append(
            train_step(
                run.engine,
                micro_batches,
                learning_rate=rate,
                normalize_by=config.loss.normalize_by,
                device=run.device,
            )
        )
        throughput.step_done(config.batch.global_batch_size * config.batch.row_length)
        efficiency.step_done(micro_batches)
        step = done + 1
        stops = run.stop_request.agreed()
        is_last = step == config.run.steps
        # The first step too: without it nobody sees where the loss began.
        if done == first_step or _due(step, config.observe.log_interval, at_once=is_last or stops):
            record = _training_record(run, results, step=step) | {LEARNING_RATE: rate}
            speed = throughput.take()
            seconds = speed.get(SECONDS_PER_STEP, 0.0) * len(results)
            run.sink.write(step, record | speed | efficiency.take(seconds))
            results.clear()
        if not stops and _due(step, config.evaluation.interval, at_once=is_last):
            with throughput.paused(), _told(groups):
                run.sink.write(step, _validation_record(run))
        if _due(step, config.checkpoint.interval, at_once=is_last or stops):
            with throughput.paused():
                _save(run, step, unrecorded=results)
        if stops and not is_last:
            return False
    return True


@contextmanager
def _told(groups: ParallelGroups) -> Iterator[None]:
    """Have a replica that cannot read its rows say so: it fails alone.

    The others only see that it left, and rank 0 speaks for all where all raise the same.
    """
    try:
        yield
    except GlmDistError as error:
        place = groups.coordinates
        if groups.rank > 0 and place.tensor == place.pipeline == 0:
            log.error("%s: %s", type(error).__name__, error)
        raise


def _rate(run: TrainingRun, done: int) -> float:
    """Learning rate after ``done`` steps: like the official one, it follows applied updates."""
    config = run.config
    updates = done - run.engine.skipped_steps
    return learning_rate(config.lr_schedule, config.optimizer.learning_rate, updates)


def _due(step: int, interval: int, *, at_once: bool) -> bool:
    return interval > 0 and (at_once or step % interval == 0)


def _training_record(
    run: TrainingRun, results: Sequence[StepResult], *, step: int
) -> dict[str, float]:
    """Loss since the last record, the last norm, and what fp16 does about overflows.

    Raises:
        TrainingError: See ``_checked_loss``.
    """
    record = {
        TRAIN_LOSS: _checked_loss(run, results, step=step),
        GRAD_NORM: float(results[-1].grad_norm),
        SKIPPED_STEPS: float(run.engine.skipped_steps),
    }
    if run.engine.loss_scale is not None:
        record[LOSS_SCALE] = run.engine.loss_scale
    if run.device.type == "cuda":
        record[PEAK_MEMORY] = torch.cuda.max_memory_allocated(run.device) / 2**30
    return record


def _checked_loss(run: TrainingRun, results: Sequence[StepResult], *, step: int) -> float:
    """Mean loss of the last steps; the loop's only host-device synchronisation.

    Raises:
        TrainingError: On every rank, as the numbers are the same everywhere: the loss or any of
            the gradient norms is not finite.
    """
    loss_sum = torch.stack([result.loss_share for result in results]).sum()
    dist.all_reduce(loss_sum, group=run.engine.groups.world)
    norms = [result.grad_norm.to(run.device, torch.float64) for result in results]
    loss, norm = float(loss_sum) / len(results), float(torch.stack(norms).max())
    # fp16 answers an overflow with an infinite norm, no update and a smaller scale: all is well.
    overflowed = run.engine.has_loss_scale and math.isinf(norm) and math.isfinite(loss)
    if not (math.isfinite(loss) and math.isfinite(norm)) and not overflowed:
        first = step - len(results) + 1
        raise TrainingError(
            key=f"step {step}" if first == step else f"steps {first} to {step}",
            found=f"loss {loss}, gradient norm {norm}",
            expected="finite numbers",
            fix="continue from the last checkpoint in a new run with a lower "
            "optimizer.learning_rate, a longer warm-up or precision=bf16",
        )
    return loss


def _validation_record(run: TrainingRun) -> dict[str, float]:
    losses = validation_losses(
        run.engine,
        run.validation_row,
        objectives=run.objectives,
        num_rows=run.config.evaluation.rows_per_objective,
        micro_batch_size=run.config.batch.micro_batch_size,
        device=run.device,
    )
    return {f"{VALID_LOSS}{name}": loss for name, loss in losses.items()}


def _save(run: TrainingRun, step: int, *, unrecorded: Sequence[StepResult]) -> None:
    if unrecorded:
        _checked_loss(run, unrecorded, step=step)
    started = time.monotonic()
    path = save_state(
        run.engine,
        run.checkpoints,
        step=step,
        extra={**run.identity, "rows": step * run.config.batch.global_batch_size},
        keep_last=run.config.checkpoint.keep_last,
    )
    seconds = round(time.monotonic() - started, 2)
    run.sink.event(step, "checkpoint", {"path": str(path), "seconds": seconds})
