"""The training loop: rows in, one step after the other, and after each the observers that are due.

Everything that decides a number is elsewhere; this file decides when. All ranks take the same
branches, because every branch depends on the step alone or on values that were reduced over all.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.config.schema import RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.errors import GlmDistError
from glm_dist.observe.phases import DATA, SAVE, STEP, VOTE, PhaseClock
from glm_dist.observe.sinks import MetricSink
from glm_dist.optim.lr_schedule import learning_rate
from glm_dist.optim.state import StepOutcome
from glm_dist.parallel.errors import on_this_rank
from glm_dist.parallel.progress import Progress
from glm_dist.parallel.rng import seed_step
from glm_dist.train.divergence import non_finite_gradients, overflow_at_smallest_scale
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.evaluate import EvaluationRows
from glm_dist.train.observers import Benchmarks, Observer, Recorder, StepDone, Validator
from glm_dist.train.own_time import OwnTime
from glm_dist.train.preemption import StopRequest
from glm_dist.train.saver import Saver
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
    upkeep: Upkeep = field(default_factory=Upkeep)
    """Rules of this job for the run's checkpoints, and which of them are verified."""
    validates_first: bool = False
    """Validate before the first step, because the weights come from another run."""
    benchmarks: Benchmarks | None = None
    """Measures the model at every validation; None: only losses are measured."""
    phases: PhaseClock = field(default_factory=PhaseClock)
    """Time by phase since the loop began."""
    alive: Callable[[int], None] = lambda step: None
    """Called after each step."""
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
    config = run.config
    if first_step >= config.run.steps:
        log.info("nothing left to train step=%d run.steps=%d", first_step, config.run.steps)
    phases = run.phases
    recorder, validator, saver = _observers(run, phases, first_step=first_step)
    try:
        return _train(run, phases, recorder, validator, saver, first_step=first_step)
    except GlmDistError as error:
        if error.rank is None:
            saver.settle()
        raise


def _train(
    run: LoopContext,
    phases: PhaseClock,
    recorder: Recorder,
    validator: Validator,
    saver: Saver,
    *,
    first_step: int,
) -> bool:
    config, engine = run.config, run.engine
    wait = OwnTime(torch.device("cpu"))
    observers: list[Observer] = [recorder, validator, saver, _straggler_watch(run, wait)]
    if run.validates_first and config.evaluation.interval > 0:
        with phases(validator.phase):
            validator.act(StepDone(first_step))
        run.stop_request.raise_if_agreed()
    run.stop_request.begin_training()
    for step in range(first_step + 1, config.run.steps + 1):
        run.progress.step = step
        seed_step(config.run.seed, step - 1, coordinates=engine.groups.coordinates)
        with phases(DATA), wait(), on_this_rank(engine.groups.rank):
            micro_batches = next(run.batches)
        run.alive(step - 1)
        rate = _rate(run, done=step - 1)
        with phases(STEP):
            result = train_step(
                engine,
                micro_batches,
                learning_rate=rate,
                normalize_by=config.loss.normalize_by,
                device=run.device,
            )
        _check_outcome(run, result.outcome, saver, step=step)
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
        _observe(run, observers, phases, done)
        if run.stop_request.is_agreed and not done.is_last:
            run.stop_request.stop(step)
            return False
    return True


def _observe(
    run: LoopContext, observers: Sequence[Observer], phases: PhaseClock, done: StepDone
) -> None:
    """Let the observers act that are due; a stop in the meantime makes more of them due."""
    waiting = list(observers)
    for observer in observers:
        if observer.due(replace(done, stops=run.stop_request.is_agreed)):
            waiting.remove(observer)
            with phases(observer.phase):
                observer.act(replace(done, stops=run.stop_request.is_agreed))
    # In the background a save takes no time here; the next step's vote comes soon enough.
    has_waited = not run.config.checkpoint.background and any(
        observer.phase == SAVE for observer in observers if observer not in waiting
    )
    if has_waited:
        run.stop_request.agreed(step_done=False)
    if run.stop_request.is_agreed:
        for observer in waiting:
            if observer.due(replace(done, stops=True)):
                with phases(observer.phase):
                    observer.act(replace(done, stops=True))


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
        settle=lambda: saver.settle(),
    )
    validator = Validator(
        run.config,
        run.engine,
        run.validation,
        sink=run.sink,
        device=run.device,
        benchmarks=run.benchmarks,
        stops=partial(run.stop_request.agreed, step_done=False),
    )
    saver = Saver(
        run.config,
        run.engine,
        run.checkpoints,
        identity=run.identity,
        check=recorder.check,
        sink=run.sink,
        device=run.device,
        phases=phases,
        saved=run.stop_request.save_done,
        upkeep=run.upkeep,
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


def _check_outcome(run: LoopContext, outcome: StepOutcome, saver: Saver, *, step: int) -> None:
    """Raise after a skipped update, unless a smaller loss scale may avoid the next overflow.

    Raises:
        TrainingError: On every rank, since all agree on skipped updates.
    """
    if not outcome.is_skipped or outcome.is_recoverable:
        return
    saver.settle()  # the error names the newest checkpoint
    scale = run.engine.zero.loss_scale
    if scale is not None:
        raise overflow_at_smallest_scale(run.config, step=step, scale=scale)
    raise non_finite_gradients(run.config, step=step, norm=float(outcome.norm))
