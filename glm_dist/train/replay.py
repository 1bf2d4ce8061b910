"""Replay of recorded steps from a checkpoint, to see whether a resumed run would be the same run.

Nothing is written: the training loop runs as in a job, but its records stay in memory, and its
run folder is a temporary one.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from glm_dist.checkpoint.folders import list_steps
from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.load import WEIGHTS, CheckpointInfo, load_tensors, read_checkpoint
from glm_dist.checkpoint.manifest import Json
from glm_dist.config.launch import LaunchEnvironment
from glm_dist.config.schema import RunConfig
from glm_dist.errors import EXIT_USER_ERROR, CheckpointError, GlmDistError
from glm_dist.observe.log import quiet_libraries, setup_logging
from glm_dist.observe.metrics import GRAD_NORM, TRAIN_LOSS
from glm_dist.observe.run_folder import CHECKPOINTS
from glm_dist.observe.sinks import Details
from glm_dist.parallel.errors import RankFailure, Ranks
from glm_dist.parallel.failures import heard_by_all, report_failure, report_mistake
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.process import JobProcess, start_process
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.job import build_engine
from glm_dist.train.loop import LoopContext, train
from glm_dist.train.preemption import StopRequest
from glm_dist.train.replay_plan import Plan, Recorded, plan_for
from glm_dist.train.rows import RunRows
from glm_dist.train.same_run import (
    check_has_optimizer,
    check_same_rows,
    passed_over,
    stability_memory,
)
from glm_dist.train.state import restore_state, training_fragments
from glm_dist.train.workload import OpenWorkload, Workload, open_pretraining


@dataclass(frozen=True)
class Compared:
    """A record and the same steps replayed."""

    recorded: Recorded
    loss: float
    grad_norm: float

    @property
    def difference(self) -> float:
        """Largest relative difference of loss and gradient norm."""
        found = [_relative(self.recorded.loss, self.loss)]
        if self.recorded.grad_norm is not None:
            found.append(_relative(self.recorded.grad_norm, self.grad_norm))
        return max(found)


@dataclass(frozen=True)
class WeightDifference:
    """Difference between replayed weights and those of a later checkpoint."""

    step: int
    tensors: int
    """Weights and moments, over all ranks."""
    unequal: int
    """Tensors that differ in any bit, over all ranks."""
    relative: float
    """Norm of the difference of all weights, as a share of the norm of the weights.

    Not the largest difference: gradients of the keys' biases are rounding errors, which AdamW
    scales to full updates, so those few values differ in every layout.
    """
    name: str
    """Weight with the largest difference; empty if there is none."""


@dataclass(frozen=True)
class Replay:
    """Result of a replay."""

    plan: Plan
    compared: tuple[Compared, ...]
    weights: WeightDifference | None
    same_layout: bool
    """True if the ranks are laid out as when the checkpoint was written."""
    seconds: float


def run_replay(
    run: Path,
    config: RunConfig,
    launch: LaunchEnvironment,
    *,
    step: int | None,
    steps: int,
    report: Callable[[Replay], int],
    workload: OpenWorkload = open_pretraining,
) -> int:
    """Replay steps of a run and report. Collective over all ranks of the job.

    Args:
        run: The run's folder, which is only read.
        config: The run's configuration, in the layout of this job.
        launch: Identity of this process.
        step: Checkpoint to start from; see ``plan_replay``.
        steps: Most steps to replay.
        report: Called on rank 0 with the result; returns the exit status.
        workload: Opens what the run learned.

    Returns:
        Exit status.
    """
    setup_logging(launch.rank, console=Console(stderr=True))
    process = start_process(launch, timedelta(minutes=config.parallel.timeout_minutes))
    try:
        with heard_by_all(process.board):
            result = _replay(
                run, config, launch, process, step=step, steps=steps, workload=workload
            )
            status = Ranks(None).on_first("report", str(run), lambda: report(result))
    except RankFailure as failure:
        report_failure(process.board, failure)
        return failure.status
    except GlmDistError as error:
        report_mistake(process.board, error)
        return EXIT_USER_ERROR
    dist.barrier()
    dist.destroy_process_group()
    return status


def _replay(
    run: Path,
    config: RunConfig,
    launch: LaunchEnvironment,
    process: JobProcess,
    *,
    step: int | None,
    steps: int,
    workload: OpenWorkload,
) -> Replay:
    started = time.monotonic()
    ranks = Ranks(None)
    plan = ranks.on_first(
        "plan the replay", str(run), lambda: plan_for(run, step=step, steps=steps)
    )
    info = read_checkpoint(_folder_of(run, plan.start))
    check_has_optimizer(info.path, info.manifest)
    with ranks.raise_on_all_ranks("open the data", "data"):
        opened = workload(config)
    check_same_rows(config, info.path, extra=info.manifest.extra, current=opened.fingerprint())
    layout = Layout.from_config(config, launch.world_size)
    engine = build_engine(
        config,
        build_groups(layout, timedelta(minutes=config.parallel.timeout_minutes)),
        device=process.device,
        world_size=launch.world_size,
        task=opened.task,
    )
    quiet_libraries()
    restore_state(engine, info)
    extra = info.manifest.extra
    steps_done = _train(config, engine, opened, plan, extra=extra, device=process.device)
    compared = tuple(compare(each, steps_done) for each in plan.records)
    weights = None
    if plan.later is not None:
        weights = compare_weights(engine, read_checkpoint(_folder_of(run, plan.later)))
    return Replay(
        plan,
        compared,
        weights,
        same_layout=dict(info.manifest.layout) == dict(layout.sizes()),
        seconds=time.monotonic() - started,
    )


def _train(
    config: RunConfig,
    engine: TrainingEngine,
    workload: Workload,
    plan: Plan,
    *,
    extra: Mapping[str, Json],
    device: torch.device,
) -> dict[int, tuple[float, float]]:
    """Train from the checkpoint; return loss and gradient norm by step, on every rank."""
    memory = _Memory()
    with tempfile.TemporaryDirectory() as folder:
        quiet = replace(
            config,
            run=replace(config.run, steps=plan.until),
            observe=replace(config.observe, log_interval=1),
            evaluation=replace(config.evaluation, interval=0),
            checkpoint=replace(config.checkpoint, interval=0),
            paths=replace(config.paths, runs=folder),
        )
        context = LoopContext(
            config=quiet,
            engine=engine,
            rows=RunRows(
                config,
                workload.rows,
                engine.groups,
                done=plan.start,
                passed_over=passed_over(extra),
            ),
            workload=workload,
            stop_request=StopRequest(),
            sink=memory,
            checkpoints=quiet.run_dir / CHECKPOINTS,
            identity={},
            device=device,
            saved=stability_memory(extra),
        )
        if not train(context, first_step=plan.start):
            raise CheckpointError(
                "The replay was interrupted before its last step.\n  Start it again.",
                key="signal",
                fix="start it again",
            )
    return memory.steps


def compare(record: Recorded, replayed: Mapping[int, tuple[float, float]]) -> Compared:
    """Compare a record with the steps that it covers.

    Args:
        record: Mean loss of these steps, and gradient norm of the last.
        replayed: Loss and gradient norm by step; steps whose update was skipped are missing, as
            they are in the record.
    """
    found = [replayed[n] for n in range(record.first, record.last + 1) if n in replayed]
    if not found:
        return Compared(record, math.nan, math.nan)
    return Compared(record, sum(loss for loss, _ in found) / len(found), found[-1][1])


class _Memory:
    """A sink that keeps loss and gradient norm of each step."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[float, float]] = {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricSink``."""
        if TRAIN_LOSS in values:
            self.steps[step] = (values[TRAIN_LOSS], values[GRAD_NORM])

    def event(self, step: int, kind: str, details: Details) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def compare_weights(engine: TrainingEngine, info: CheckpointInfo) -> WeightDifference:
    """Compare the training state with a checkpoint's. Collective over all ranks.

    Args:
        engine: Model and optimizer of this rank; unchanged.
        info: Checkpoint of the same step.
    """
    engine.zero.ensure_moments()
    fragments = training_fragments(engine)
    found: list[tuple[float, str]] = [(0.0, "")]
    unequal = set()
    square = 0.0
    for prefix in sorted({name.partition(".")[0] + "." for name in info.manifest.tensors}):
        mine = {name: each for name, each in fragments.items() if name.startswith(prefix)}
        saved = {name: _empty_copy(each) for name, each in mine.items()}
        load_tensors(info, saved, prefixes=(prefix,))
        for name, fragment in mine.items():
            for here, there in zip(fragment.boxes, saved[name].boxes, strict=True):
                if not torch.equal(here.cpu(), there):
                    unequal.add(name)
                if prefix == WEIGHTS:
                    square += _square(there)
                    found.append((_square(here.cpu() - there), name.removeprefix(prefix)))
    everywhere = Ranks(None).gather((sorted(fragments), sorted(unequal), square, found))
    total = sum(each[2] for each in everywhere)
    differences = [pair for each in everywhere for pair in each[3]]
    difference, name = max(differences)
    relative = math.sqrt(sum(each for each, _ in differences) / (total or 1.0))
    return WeightDifference(
        info.manifest.step,
        tensors=len({name for each in everywhere for name in each[0]}),
        unequal=len({name for each in everywhere for name in each[1]}),
        relative=math.inf if math.isnan(relative) else relative,
        name=name if difference > 0 else "",
    )


def _empty_copy(fragment: Fragment) -> Fragment:
    """Return a fragment of the same boxes in host memory, with undefined values."""
    return fragment.with_boxes([torch.empty(box.shape, dtype=box.dtype) for box in fragment.boxes])


def _square(values: torch.Tensor) -> float:
    """Return the sum of squares; infinite for NaN."""
    square = float(values.double().square().sum())
    return math.inf if math.isnan(square) else square


def _folder_of(run: Path, step: int) -> Path:
    """Return the folder of a checkpoint, also while it is being replaced."""
    paths = [path for number, path in list_steps(run / CHECKPOINTS) if number == step]
    return paths[0] if paths else run / CHECKPOINTS / str(step)


def _relative(one: float, other: float) -> float:
    """Return the difference as a share of the first value, or itself if that is 0."""
    share = 0.0 if one == other else abs(one - other) / (abs(one) or 1.0)
    return math.inf if math.isnan(share) else share
