"""One training job on one rank, from a checked configuration to the last checkpoint."""

import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch

from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.save import check_shared
from glm_dist.config.launch import LaunchEnvironment
from glm_dist.config.load import dump_config
from glm_dist.config.parameter_specs import count_parameters
from glm_dist.config.schema import RunConfig
from glm_dist.config.trainable import trainable_names
from glm_dist.data.tokenizer.stored import store_tokenizer
from glm_dist.errors import GlmDistError
from glm_dist.model.compiled import compile_layers
from glm_dist.model.fusing import choose_pointwise
from glm_dist.model.parameters import freeze, initialize
from glm_dist.model.pointwise import use_pointwise
from glm_dist.model.stage import build_shard
from glm_dist.observe.endings import remove_endings
from glm_dist.observe.fence import FencedSink
from glm_dist.observe.log import quiet_libraries, setup_logging
from glm_dist.observe.phases import PhaseClock
from glm_dist.observe.run_folder import (
    CHECKPOINTS,
    HEARTBEATS,
    RunFolder,
    begin_attempt,
    collect_provenance,
    lock_run_folder,
)
from glm_dist.observe.sinks import SinkGroup, open_sinks
from glm_dist.observe.step_profiler import named_range
from glm_dist.parallel.errors import RankFailure, Ranks, needs_human
from glm_dist.parallel.gpus import refuse_shared_gpus
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.hardware import describe_gpu
from glm_dist.parallel.progress import FINISH
from glm_dist.stop_signals import StopListener
from glm_dist.train.already import note_run_folder
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.ending import end_attempt, fail_attempt
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.launch_memory import check_device_memory
from glm_dist.train.loop import LoopContext, finish_work, train
from glm_dist.train.member import Member, as_member
from glm_dist.train.observers import Benchmarks
from glm_dist.train.preemption import StoppedBeforeTraining, StopRequest
from glm_dist.train.rows import RunRows
from glm_dist.train.same_everywhere import (
    agree_on_surroundings,
    check_same_data,
    check_same_everywhere,
)
from glm_dist.train.same_run import passed_over, stability_memory
from glm_dist.train.start import Start, facts_of_start, starting_point
from glm_dist.train.task import Pretraining, Task
from glm_dist.train.time_limit import TimeLimit, job_end
from glm_dist.train.uploads import open_run_store, open_uploads
from glm_dist.train.workload import OpenWorkload, Workload, open_pretraining

log = logging.getLogger(__name__)

PRETRAINING = Pretraining()
"""Its loss is reported in total only."""


def run(
    config: RunConfig,
    launch: LaunchEnvironment,
    *,
    workload: OpenWorkload = open_pretraining,
    benchmarks: Benchmarks | None = None,
    listener: StopListener | None = None,
) -> int:
    """Train. Collective over all ranks of the job.

    Args:
        config: Checked against the world size and the files.
        launch: Identity of this process.
        workload: Opens what is learned; called once on every rank.
        benchmarks: Measures the model at every validation; None: only losses are measured.
        listener: Has listened for stop requests since the process began; None: begins after all
            ranks have joined.

    Returns:
        Exit status, equal on all ranks: 0 finished, 75 stopped on request and saved or before
        training, 130 stopped on request without a checkpoint, 2 a user error before training, 76
        one in training, 1 a bug.
    """
    return as_member(
        partial(train_run, config, workload=workload, benchmarks=benchmarks),
        launch,
        timeout=timedelta(minutes=config.parallel.timeout_minutes),
        watchdog=config.watchdog,
        listener=listener,
    )


def train_run(
    config: RunConfig,
    member: Member,
    *,
    workload: OpenWorkload = open_pretraining,
    benchmarks: Benchmarks | None = None,
    command: Sequence[str] = (),
) -> int:
    """Train one run of a job. Collective over all ranks of the job.

    Args:
        config: As for ``run``.
        member: This process.
        workload: As for ``run``.
        benchmarks: As for ``run``.
        command: Command line that starts this run by itself, with the program's name; empty: the
            process's own.

    Returns:
        As ``run``.

    Raises:
        GlmDistError: A user error; the job is over.
        RankFailure: Another rank failed.
    """
    request = member.begin_run()
    refuse_shared_gpus(member.process.device, os.environ)
    agree_on_surroundings(member.launch, os.environ)
    check_same_everywhere(config)
    groups = member.groups(config)
    if command and member.launch.rank == 0:  # else noted before torch was loaded
        note_run_folder(config, os.environ, is_part=True)
    folder = _open_folder(config, member)
    member.process.watchdog.open_folder(config.run_dir / HEARTBEATS)
    member.process.board.last_words = partial(fail_attempt, folder)
    job = _Job(
        config=config,
        member=member,
        request=request,
        groups=groups,
        folder=folder,
        workload=workload,
        benchmarks=benchmarks,
        command=command or sys.argv,
    )
    try:
        _train(job)
    except StoppedBeforeTraining:
        request.stop(None)
    except (GlmDistError, RankFailure) as error:
        fail_attempt(folder, error)
        raise
    status = end_attempt(folder, config, request)
    if folder is not None and folder.lock is not None:
        folder.lock.close()
    member.end_run(config)
    return status


@dataclass(frozen=True)
class _Job:
    """Parts of a run on this process once its folder is open."""

    config: RunConfig
    member: Member
    request: StopRequest
    groups: ParallelGroups
    folder: RunFolder | None
    """On rank 0; None elsewhere."""
    workload: OpenWorkload
    benchmarks: Benchmarks | None
    command: Sequence[str]
    """Command line that starts this run."""


def _train(job: _Job) -> None:
    """Build everything, then train.

    Raises:
        StoppedBeforeTraining: A stop was requested meanwhile.
    """
    config, process, request, folder = job.config, job.member.process, job.request, job.folder
    request.raise_if_agreed()
    with Ranks(None).raise_on_all_ranks("open the data", "data"):
        workload = job.workload(config)
    check_same_data(workload.digests())
    _check_memory(job, workload)
    engine = build_engine(
        config,
        job.groups,
        device=process.device,
        world_size=job.member.launch.world_size,
        task=workload.task,
    )
    quiet_libraries()
    request.raise_if_agreed()
    identity: dict[str, Json] = {"data": workload.fingerprint()}
    run_store = open_run_store(config, folder, turn=process.progress.restart)
    start = starting_point(config, engine, identity, run_store=run_store)
    # Not before: a refused start changes nothing.
    _begin_attempt(job)
    _keep_tokenizer(config)
    phases = PhaseClock(listener=process.progress.enter, annotate=named_range)
    sink = _open_sinks(job, engine, workload, start, phases)
    if folder is not None:
        request.limit(_time_limit(config, job.member.launch, request.started))
    upkeep = start.upkeep(config, folder)
    rows = RunRows(
        config, workload.rows, job.groups, done=start.step, passed_over=passed_over(start.extra)
    )
    context = LoopContext(
        config=config,
        engine=engine,
        rows=rows,
        workload=workload,
        stop_request=request,
        sink=sink,
        checkpoints=config.run_dir / CHECKPOINTS,
        identity=identity | facts_of_start(config),
        device=process.device,
        upkeep=upkeep,
        uploads=open_uploads(config, run_store, sink, upkeep=upkeep, newest=start.own_path),
        validates_first=start.origin is not None,
        benchmarks=job.benchmarks,
        phases=phases,
        alive=sink.alive,
        progress=process.progress,
        saved=stability_memory(start.extra),
        extra={} if start.own is None else start.extra,
    )
    try:
        _run_loop(context, first_step=start.step)
    finally:
        rows.close()
    engine.close()


def _check_memory(job: _Job, workload: Workload) -> None:
    device = job.member.process.device
    if device.type == "cuda":
        with Ranks(None).raise_on_all_ranks("fit the model into memory", "memory"):
            check_device_memory(
                job.config, job.groups, device, rows_per_item=workload.rows_per_item
            )


def _run_loop(context: LoopContext, *, first_step: int) -> None:
    try:
        context.stop_request.raise_if_agreed()
        with needs_human(context.engine.groups.rank):
            if train(context, first_step=first_step):
                finish_work(context)
        context.progress.enter(FINISH)
    finally:
        context.sink.close()


def _open_sinks(
    job: _Job, engine: TrainingEngine, workload: Workload, start: Start, phases: PhaseClock
) -> SinkGroup | FencedSink:
    """Open the run's records on rank 0; on the others, nothing is recorded."""
    folder = job.folder
    if folder is None:
        return SinkGroup()
    rows_per_step = job.config.batch.global_batch_size * workload.rows_per_item
    _announce(job, engine, first_step=start.step, rows_per_step=rows_per_step)
    sinks = open_sinks(
        job.config,
        attempt=folder.attempt,
        first_step=start.step,
        console=job.member.console,
        environ=os.environ,
        phases=phases,
        may_write=folder.fence.holds,
        process_started=job.request.process_started,
    )
    sink = FencedSink(sinks, folder.fence)
    if start.origin is not None:
        sink.event(start.step, "initialized", start.described())
    return sink


def _time_limit(config: RunConfig, launch: LaunchEnvironment, started: float) -> TimeLimit:
    return TimeLimit(
        parameters=count_parameters(config.model, config.padded_vocab_size),
        started=started,
        max_minutes=config.run.max_minutes,
        end=job_end(os.environ),
        launcher=launch.launcher,
    )


def _keep_tokenizer(config: RunConfig) -> None:
    Ranks(None).on_first(
        "keep the tokenizer",
        str(config.run_dir),
        lambda: store_tokenizer(config.tokenizer, config.run_dir),
    )


def _open_folder(config: RunConfig, member: Member) -> RunFolder | None:
    """Create or reopen the run folder on rank 0; return None on the others.

    Afterwards every rank logs into it, and has checked that it can save there.
    """
    ranks = Ranks(None)
    opened: list[RunFolder] = []
    ranks.on_first(
        "open the run folder",
        str(config.run_dir),
        lambda: opened.append(lock_run_folder(config.run_dir)),
    )
    with ranks.raise_on_all_ranks("open a log file", str(config.run_dir)):
        setup_logging(member.launch.rank, config.run_dir, console=member.console)
    if config.checkpoint.interval > 0:
        check_shared(config.run_dir)
    return opened[0] if opened else None


def _begin_attempt(job: _Job) -> None:
    """Write configuration and provenance of the attempt. Collective over all ranks."""
    config, folder = job.config, job.folder
    ranks = Ranks(None)
    hosts = ranks.gather(socket.gethostname())

    def begin() -> None:
        assert folder is not None  # on rank 0
        begin_attempt(
            folder,
            config=dump_config(config),
            overrides=job.command[1:],
            provenance=collect_provenance(
                hosts=hosts,
                world_size=job.member.launch.world_size,
                layout=job.groups.layout.sizes(),
                command=job.command,
                launcher=job.member.launch.launcher,
                hardware=describe_gpu(job.member.process.device),
            ),
        )
        remove_endings(folder.path, last_step=config.run.steps)

    ranks.on_first("write the configuration", str(config.run_dir), begin)


def build_engine(
    config: RunConfig,
    groups: ParallelGroups,
    *,
    device: torch.device,
    world_size: int,
    task: Task = PRETRAINING,
) -> TrainingEngine:
    """Build this rank's initialised model and its optimizer. Collective over all ranks.

    Args:
        config: Checked configuration.
        groups: This rank's process groups.
        device: Device of the model.
        world_size: Processes of the whole job.
        task: Turns rows into batches and hidden states into a loss.
    """
    model = build_shard(config, groups=groups, device=device, recompute=config.recompute)
    initialize(model.shards(), seed=config.run.seed)
    freeze(model.shards(), trainable=trainable_names(config))
    use_pointwise(model, choose_pointwise(config.compile, device=device))
    if config.compile.enabled:
        compile_layers(model)
    return TrainingEngine(
        model,
        task,
        config.optimizer,
        deepspeed_config=deepspeed_config(config, world_size=world_size),
        groups=groups,
    )


def _announce(job: _Job, engine: TrainingEngine, *, first_step: int, rows_per_step: int) -> None:
    config, layout = job.config, engine.groups.layout
    log.info(
        "training run=%s layout=%s zero=%d dtype=%s steps=%d..%d rows_per_step=%d "
        "micro_batches=%d startup_seconds=%.1f",
        config.run_dir,
        layout,
        config.zero.stage,
        config.precision.dtype.name,
        first_step,
        config.run.steps,
        rows_per_step,
        config.num_micro_batches(layout.world_size),
        time.monotonic() - job.member.run_started,
    )
