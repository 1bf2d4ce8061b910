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
from glm_dist.observe.phases import DATA, SAVE, STEP, VALIDATE, VOTE, PhaseClock
from glm_dist.observe.sinks import MetricSink
from glm_dist.observe.step_profiler import StepProfiler
from glm_dist.optim.lr_schedule import learning_rate
from glm_dist.optim.state import Rates
from glm_dist.parallel.errors import on_this_rank
from glm_dist.parallel.progress import Progress
from glm_dist.parallel.rng import seed_step
from glm_dist.train.best import BestTracker
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.observers import Benchmarks, Observer, Recorder, StepDone, Validator
from glm_dist.train.own_time import OwnTime
from glm_dist.train.preemption import StopRequest
from glm_dist.train.replicas import ReplicaCheck
from glm_dist.train.rows import StepBatches
from glm_dist.train.saver import Saver
from glm_dist.train.settling import QueuedStep, StepQueue
from glm_dist.train.stability import STABILITY, Guard
from glm_dist.train.step import StepResult, train_step
from glm_dist.train.stragglers import StragglerWatch
from glm_dist.train.uploads import Uploads
from glm_dist.train.workload import Workload

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopContext:
    """Inputs of the training loop on this rank."""

    config: RunConfig
    engine: TrainingEngine
    rows: StepBatches
    """Micro-batches of this replica, one item per step, from the first remaining step."""
    workload: Workload
    """Validates."""
    stop_request: StopRequest
    sink: MetricSink
    """Takes records; does nothing on ranks other than 0."""
    checkpoints: Path
    identity: Mapping[str, Json]
    """Facts about the run stored in a checkpoint, such as the data's fingerprint."""
    device: torch.device
    upkeep: Upkeep = field(default_factory=Upkeep)
    """Rules of this job for the run's checkpoints, and which of them are verified."""
    uploads: Uploads | None = None
    """Uploads to ``checkpoint.url``; None: the run has none."""
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
    saved: Mapping[str, Json] = field(default_factory=dict)
    """Memory of the guard from the checkpoint; empty for a new run."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """All facts in that checkpoint; empty for a new run, from whatever weights."""


def train(run: LoopContext, *, first_step: int) -> bool:
    """Train to ``run.steps``, or until a stop is requested. Collective over all ranks.

    Args:
        run: Inputs of the loop.
        first_step: Steps already done.

    Returns:
        True if the run is finished. If not, its newest checkpoint holds the last step, unless
        checkpoint.interval is 0.

    Raises:
        TrainingError: A gradient or the loss is not finite, or replicas differ; no checkpoint was
            written since.
        CheckpointError: A checkpoint could not be written.
    """
    config = run.config
    if first_step >= config.run.steps:
        log.info("nothing left to train step=%d run.steps=%d", first_step, config.run.steps)
    phases = run.phases
    guard = _guard(run)
    best = _best(run, first_step=first_step)
    recorder, replicas, validator, saver = _observers(run, guard, best, first_step=first_step)
    guard.settles_saves = saver.finish
    wait = OwnTime(torch.device("cpu"))
    profiled = StepProfiler(
        config, rank=run.engine.groups.rank, device=run.device, phases=phases, first_step=first_step
    )
    readers: list[Observer] = [recorder, replicas, validator, saver]
    others: list[Observer] = [_straggler_watch(run, wait)]
    if run.uploads is not None:
        others.append(run.uploads)
    try:
        is_owed = run.validates_first or best.lacks(first_step)
        if is_owed and config.evaluation.interval > 0:
            with phases(validator.phase):
                validator.act(StepDone(first_step))
            run.stop_request.raise_if_agreed()
            best.saved(first_step)  # the run has just been resumed from there
        is_finished = _train(
            run, guard, best, recorder, readers, others, wait, profiled, first_step=first_step
        )
        saver.finish_uploads()
        return is_finished
    except GlmDistError as error:
        if error.rank is None:
            saver.settle()
        raise


def _train(
    run: LoopContext,
    guard: Guard,
    best: BestTracker,
    recorder: Recorder,
    readers: Sequence[Observer],
    others: Sequence[Observer],
    wait: OwnTime,
    profiled: StepProfiler,
    *,
    first_step: int,
) -> bool:
    """See ``train``; ``readers`` are the observers that read a step's outcome or the model."""
    config, engine, phases = run.config, run.engine, run.phases
    run.stop_request.begin_training()
    queue = StepQueue(guard, recorder)
    step = first_step
    while step < config.run.steps and not best.is_exhausted:
        step += 1
        run.progress.step = step
        with profiled(step):
            seed_step(config.run.seed, step - 1, coordinates=engine.groups.coordinates)
            with phases(DATA), wait(), on_this_rank(engine.groups.rank):
                micro_batches = next(run.rows)
            run.alive(step - 1)
            rates = _rates(run, queue, done=step - 1)
            with phases(STEP):
                result = _run_step(run, guard, micro_batches, rates)
                verdict = queue.add(QueuedStep(step, result, micro_batches))
                done = StepDone(
                    step,
                    is_first=step == first_step + 1,
                    is_last=step == config.run.steps,
                    learning_rate=rates.if_dropped if queue.was_dropped else rates.if_applied,
                )
                if verdict.back_to is None and _is_read(run, guard, readers, result, done):
                    verdict = queue.settle()
            if verdict.back_to is None:
                with phases(VOTE):
                    done = replace(done, stops=run.stop_request.agreed())
                if done.stops:
                    with phases(STEP):
                        verdict = queue.settle()
            if verdict.back_to is not None:
                step = verdict.back_to
                recorder.restart(step)
                best.restore(verdict.extra)
                continue
            _observe(run, best, [*readers, *others], done)
            if run.stop_request.is_agreed and not done.is_last and not best.is_exhausted:
                run.sink.event(step, "stopped", {"reason": run.stop_request.reason})
                run.stop_request.stop(step)
                return False
    if best.is_exhausted and step < config.run.steps:
        log.info("finished early step=%d reason=%s", step, best.reason)
        run.sink.event(step, "finished_early", {"reason": best.reason})
        run.stop_request.finish(step)
    return True


def _observe(
    run: LoopContext, best: BestTracker, observers: Sequence[Observer], done: StepDone
) -> None:
    """Let the observers act that are due.

    A stop in the meantime makes more of them due, and so does a validation that ends the run.
    """

    def seen() -> StepDone:
        is_last = done.is_last or best.is_exhausted
        return replace(done, is_last=is_last, stops=run.stop_request.is_agreed)

    waiting = list(observers)
    for observer in observers:
        if observer.due(seen()):
            waiting.remove(observer)
            with run.phases(observer.phase):
                observer.act(seen())
    # In the background a save takes no time here; the next step's vote comes soon enough.
    has_waited = not run.config.checkpoint.background and any(
        observer.phase == SAVE for observer in observers if observer not in waiting
    )
    if has_waited:
        run.stop_request.agreed(step_done=False)
    if run.stop_request.is_agreed or best.is_exhausted:
        for observer in waiting:
            if observer.due(seen()):
                with run.phases(observer.phase):
                    observer.act(seen())


def _is_read(
    run: LoopContext,
    guard: Guard,
    readers: Sequence[Observer],
    result: StepResult,
    done: StepDone,
) -> bool:
    """Return True if the outcome of a step is wanted before the next one is queued."""
    return (
        done.is_last
        or result.pending.is_settled
        or guard.judge is not None
        or run.engine.zero.has_loss_scale  # the next step's scale follows from it
        or any(reader.due(done) for reader in readers)
    )


def _run_step(
    run: LoopContext, guard: Guard, micro_batches: Sequence[MicroBatch], rates: Rates
) -> StepResult:
    return train_step(
        run.engine,
        micro_batches,
        rates=rates,
        normalize_by=run.config.loss.normalize_by,
        device=run.device,
        accept=guard.judge,
    )


def _guard(run: LoopContext) -> Guard:
    return Guard(
        run.config,
        run.engine,
        run.rows,
        checkpoints=run.checkpoints,
        sink=run.sink,
        device=run.device,
        saved=run.saved,
        phases=run.phases,
        upkeep=run.upkeep,
    )


class _Facts(Mapping[str, Json]):
    """Facts stored in a checkpoint; what the run remembers is read at each save."""

    def __init__(self, identity: Mapping[str, Json], guard: Guard, best: BestTracker) -> None:
        self._identity = identity
        self._guard = guard
        self._best = best

    def _all(self) -> dict[str, Json]:
        return {**self._identity, STABILITY: self._guard.memory(), **self._best.memory()}

    def __getitem__(self, name: str) -> Json:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _best(run: LoopContext, *, first_step: int) -> BestTracker:
    return BestTracker(
        run.config,
        run.workload.selection,
        run.checkpoints,
        upkeep=run.upkeep,
        sink=run.sink,
        saved=run.extra,
        ignores=first_step if run.validates_first else None,
    )


def _observers(
    run: LoopContext, guard: Guard, best: BestTracker, *, first_step: int
) -> tuple[Recorder, ReplicaCheck, Validator, Saver]:
    """Create the observers in the order in which they act."""
    recorder = Recorder(
        run.config,
        run.engine,
        rows=run.rows,
        guard=guard,
        sink=run.sink,
        phases=run.phases,
        first_step=first_step,
        device=run.device,
        settle=lambda: saver.settle(),
    )
    validator = Validator(
        run.config,
        run.engine,
        run.workload,
        sink=run.sink,
        device=run.device,
        benchmarks=run.benchmarks,
        stops=partial(_vote_between_batches, run),
        found=best.observe,
    )
    saver = Saver(
        run.config,
        run.engine,
        run.checkpoints,
        identity=_Facts(run.identity, guard, best),
        check=recorder.check,
        sink=run.sink,
        device=run.device,
        phases=run.phases,
        best=best,
        began=run.stop_request.save_began,
        saved=run.stop_request.save_done,
        upkeep=run.upkeep,
        uploads=run.uploads,
    )
    replicas = ReplicaCheck(run.config, run.engine, sink=run.sink)
    return recorder, replicas, validator, saver


def finish_work(run: LoopContext) -> None:
    """Conclude a run whose steps are all done; see ``Workload``. Collective over all ranks."""
    step = run.stop_request.finished_at or run.config.run.steps
    run.progress.enter(VALIDATE)
    is_done = run.workload.finish(
        run.engine,
        step=step,
        device=run.device,
        run_dir=run.config.run_dir,
        stops=partial(_vote_between_batches, run),
    )
    if not is_done:
        run.stop_request.stop(step)


def _vote_between_batches(run: LoopContext) -> bool:
    """Vote on a stop in a validation, which may be long: its deadline begins again."""
    run.progress.restart()
    return run.stop_request.agreed(step_done=False)


def _straggler_watch(run: LoopContext, wait: OwnTime) -> StragglerWatch:
    return StragglerWatch(
        run.config.watchdog.straggler_share,
        compute=run.engine.own_time,
        data=wait,
        layout=run.engine.groups.layout,
        rank=run.engine.groups.rank,
        sink=run.sink,
    )


def _rates(run: LoopContext, queue: StepQueue, *, done: int) -> Rates:
    """Return the rates after ``done`` steps; like the official code, the schedule counts updates.

    Args:
        run: Inputs of the loop.
        queue: Tells whether the outcome of the last of these steps is known.
        done: Steps queued so far.
    """

    def after(updates: int) -> float:
        return learning_rate(run.config.lr_schedule, run.config.optimizer.learning_rate, updates)

    updates = done - run.engine.zero.skipped_steps
    rate = after(updates)
    return Rates(rate, rate if queue.is_empty else after(updates - 1))
