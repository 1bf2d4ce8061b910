"""The training loop: rows in, one step after the other, and after each the observers that are due.

Everything that decides a number is elsewhere; this file decides when. All ranks take the same
branches, because every branch depends on the step alone or on values that were reduced over all.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from glm_dist.checkpoint.manifest import Json
from glm_dist.config.schema import RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.observe.phases import DATA, STEP, VOTE, PhaseClock
from glm_dist.observe.sinks import MetricSink
from glm_dist.optim.lr_schedule import learning_rate
from glm_dist.optim.state import StepOutcome
from glm_dist.parallel.errors import on_this_rank
from glm_dist.parallel.progress import Progress
from glm_dist.parallel.rng import seed_step
from glm_dist.train.divergence import non_finite_gradients, overflow_at_smallest_scale
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.evaluate import EvaluationRows
from glm_dist.train.observers import Benchmarks, Observer, Recorder, Saver, StepDone, Validator
from glm_dist.train.own_time import OwnTime
from glm_dist.train.preemption import StopRequest
from glm_dist.train.step import train_step
from glm_dist.train.stragglers import StragglerWatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopContext:
    """Inputs of the training loop on this rank."""

    config: RunConfig
    engine: TrainingEngine
    batches: Iterator[Sequence[MicroBatch]]
    """Micro-batches of this replica, one item per step, from the first remaining step."""
    validation: EvaluationRows
    epochs_before: Callable[[int], Mapping[str, float]]
    """Returns the passes over each corpus made by the rows before a given row."""
    stop_request: StopRequest
    sink: MetricSink
    """Takes records; does nothing on ranks other than 0."""
    checkpoints: Path
    identity: Mapping[str, Json]
    """Facts about the run stored in a checkpoint, such as the data's fingerprint."""
    device: torch.device
    validates_first: bool = False
    """Validate before the first step, because the weights come from another run."""
    benchmarks: Benchmarks | None = None
    """Measures the model at every validation; None: only losses are measured."""
    progress: Progress = field(default_factory=Progress)
    """Step and phase of this rank, which the watchdog reads."""


def train(run: LoopContext, *, first_step: int) -> bool:
    """Train to ``run.steps``, or until a stop is requested. Collective over all ranks.

    Args:
        run: Inputs of the loop.
        first_step: Steps already done.

    Returns:
        True if the run is finished. If not, its newest checkpoint holds the last step, unless
        checkpoint.interval is 0.

    Raises:
        TrainingError: A gradient or the loss is not finite; no checkpoint was written since.
        CheckpointError: A checkpoint could not be written.
    """
    config, engine = run.config, run.engine
    if first_step >= config.run.steps:
        log.info("nothing left to train step=%d run.steps=%d", first_step, config.run.steps)
    phases = PhaseClock(listener=run.progress.enter)
    recorder, validator, saver = _observers(run, phases, first_step=first_step)
    wait = OwnTime(torch.device("cpu"))
    observers: list[Observer] = [recorder, validator, saver, _straggler_watch(run, wait)]
    if run.validates_first and config.evaluation.interval > 0:
        with phases(validator.phase):
            validator.act(StepDone(first_step))
    for step in range(first_step + 1, config.run.steps + 1):
        run.progress.step = step
        seed_step(config.run.seed, step - 1, coordinates=engine.groups.coordinates)
        with phases(DATA), wait(), on_this_rank(engine.groups.rank):
            micro_batches = next(run.batches)
        rate = _rate(run, done=step - 1)
        with phases(STEP):
            result = train_step(
                engine,
                micro_batches,
                learning_rate=rate,
                normalize_by=config.loss.normalize_by,
                device=run.device,
            )
        _check_outcome(run, result.outcome, step=step)
        recorder.add(result, micro_batches)
        with phases(VOTE):
            stops = run.stop_request.agreed()
        done = StepDone(
            step,
            is_first=step == first_step + 1,
            is_last=step == config.run.steps,
            stops=stops,
            learning_rate=rate,
        )
        for observer in observers:
            if observer.due(done):
                with phases(observer.phase):
                    observer.act(done)
        if stops and not done.is_last:
            return False
    return True


def _observers(
    run: LoopContext, phases: PhaseClock, *, first_step: int
) -> tuple[Recorder, Validator, Saver]:
    """Create the observers in the order in which they act."""
    recorder = Recorder(
        run.config,
        run.engine,
        epochs_before=run.epochs_before,
        sink=run.sink,
        phases=phases,
        first_step=first_step,
        device=run.device,
    )
    validator = Validator(
        run.config,
        run.engine,
        run.validation,
        sink=run.sink,
        device=run.device,
        benchmarks=run.benchmarks,
    )
    saver = Saver(
        run.config,
        run.engine,
        run.checkpoints,
        identity=run.identity,
        check=recorder.check,
        sink=run.sink,
    )
    return recorder, validator, saver


def _straggler_watch(run: LoopContext, wait: OwnTime) -> StragglerWatch:
    return StragglerWatch(
        run.config.watchdog.straggler_share,
        compute=run.engine.own_time,
        data=wait,
        layout=run.engine.groups.layout,
        rank=run.engine.groups.rank,
        sink=run.sink,
    )


def _rate(run: LoopContext, *, done: int) -> float:
    """Return the learning rate after ``done`` steps; like the official code, it counts updates."""
    config = run.config
    updates = done - run.engine.zero.skipped_steps
    return learning_rate(config.lr_schedule, config.optimizer.learning_rate, updates)


def _check_outcome(run: LoopContext, outcome: StepOutcome, *, step: int) -> None:
    """Raise after a skipped update, unless a smaller loss scale may avoid the next overflow.

    Raises:
        TrainingError: On every rank, since all agree on skipped updates.
    """
    if not outcome.is_skipped or outcome.is_recoverable:
        return
    scale = run.engine.zero.loss_scale
    if scale is not None:
        raise overflow_at_smallest_scale(run.config, step=step, scale=scale)
    raise non_finite_gradients(run.config, step=step, norm=float(outcome.norm))
