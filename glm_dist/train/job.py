"""One pretraining job on one rank, from a checked configuration to the last checkpoint."""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from rich.console import Console

from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.save import check_shared
from glm_dist.config.launch import LaunchEnvironment
from glm_dist.config.load import dump_config
from glm_dist.config.schema import RunConfig
from glm_dist.data.loader import training_batches
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.data.tokenizer.stored import store_tokenizer
from glm_dist.errors import EXIT_USER_ERROR, GlmDistError
from glm_dist.model.compiled import compile_layers
from glm_dist.model.parameters import initialize
from glm_dist.model.stage import build_shard
from glm_dist.observe.black_box import log_crashes
from glm_dist.observe.log import quiet_libraries, setup_logging
from glm_dist.observe.run_folder import (
    CHECKPOINTS,
    HEARTBEATS,
    RunFolder,
    collect_provenance,
    open_run_folder,
)
from glm_dist.observe.sinks import SinkGroup, open_sinks
from glm_dist.parallel.errors import RankFailure, Ranks
from glm_dist.parallel.failures import (
    heard_by_all,
    report_failure,
    report_mistake,
)
from glm_dist.parallel.groups import ParallelGroups, build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.process import JobProcess, start_process
from glm_dist.parallel.progress import FINISH
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.loop import LoopContext, train
from glm_dist.train.observers import Benchmarks
from glm_dist.train.preemption import EXIT_STOPPED, EXIT_UNSAVED, StopRequest
from glm_dist.train.start import starting_point
from glm_dist.train.task import Pretraining

log = logging.getLogger(__name__)


def run(
    config: RunConfig, launch: LaunchEnvironment, *, benchmarks: Benchmarks | None = None
) -> int:
    """Train. Collective over all ranks of the job.

    Args:
        config: Checked against the world size and the files.
        launch: Identity of this process.
        benchmarks: Measures the model at every validation; None: only losses are measured.

    Returns:
        Exit status: 0 finished, 75 stopped on request and saved, 130 stopped on request without a
        checkpoint, 2 a user error or an error of the operating system, 1 a bug.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    setup_logging(launch.rank, console=console)
    log_crashes()
    timeout = timedelta(minutes=config.parallel.timeout_minutes)
    process = start_process(launch, timeout, config.watchdog)
    board = process.board
    try:
        with heard_by_all(board, explain=process.watchdog.explain):
            is_finished = _run(
                config, launch, process, console=console, started=started, benchmarks=benchmarks
            )
    except RankFailure as failure:
        report_failure(board, failure)
        return failure.status
    except GlmDistError as error:
        report_mistake(board, error)
        return EXIT_USER_ERROR
    dist.barrier()
    process.watchdog.close()
    dist.destroy_process_group()
    return 0 if is_finished else _stopped_status(config, launch)


def _run(
    config: RunConfig,
    launch: LaunchEnvironment,
    process: JobProcess,
    *,
    console: Console,
    started: float,
    benchmarks: Benchmarks | None,
) -> bool:
    """Train; return False if the run was asked to stop before its last step."""
    layout = Layout.from_config(config, launch.world_size)
    groups = build_groups(layout, timedelta(minutes=config.parallel.timeout_minutes))
    folder = _open_folder(config, launch, layout, console=console)
    process.bulletin.folder = config.run_dir / HEARTBEATS
    with Ranks(None).raise_on_all_ranks("open the corpora", "data.corpora"):
        source = open_row_source(config)
    engine = build_engine(
        config,
        groups,
        device=process.device,
        world_size=launch.world_size,
        objectives=source.objectives,
    )
    quiet_libraries()
    identity = cast(dict[str, Json], {"data": source.fingerprint()})
    start = starting_point(config, engine, identity)
    Ranks(None).on_first(
        "keep the tokenizer",
        str(config.run_dir),
        lambda: store_tokenizer(config.tokenizer, config.run_dir),
    )
    sink = SinkGroup()
    if folder is not None:
        _announce(config, engine, first_step=start.step, seconds=time.monotonic() - started)
        sink = open_sinks(
            config,
            attempt=folder.attempt,
            first_step=start.step,
            console=console,
            environ=os.environ,
        )
        if start.origin is not None:
            sink.event(start.step, "initialized", {"from": str(start.origin.path)})
    context = LoopContext(
        config=config,
        engine=engine,
        batches=_batches(config, source, groups, first_step=start.step),
        validation=source.validation,
        epochs_before=source.epochs_before,
        stop_request=StopRequest(),
        sink=sink,
        checkpoints=config.run_dir / CHECKPOINTS,
        identity=identity,
        device=process.device,
        validates_first=start.origin is not None,
        benchmarks=benchmarks,
        progress=process.progress,
    )
    return _train(context, first_step=start.step)


def _train(context: LoopContext, *, first_step: int) -> bool:
    try:
        is_finished = train(context, first_step=first_step)
        context.progress.enter(FINISH)
        return is_finished
    finally:
        context.sink.close()


def _stopped_status(config: RunConfig, launch: LaunchEnvironment) -> int:
    """Return the exit status of a stopped run; it says whether a restart can resume."""
    if config.checkpoint.interval > 0:
        return EXIT_STOPPED
    if launch.rank == 0:
        log.warning(
            "stopped without a checkpoint, because checkpoint.interval=0; status=%d", EXIT_UNSAVED
        )
    return EXIT_UNSAVED


def _batches(
    config: RunConfig, source: RowSource, groups: ParallelGroups, *, first_step: int
) -> Iterator[Sequence[MicroBatch]]:
    return training_batches(
        source,
        start_step=first_step,
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        replica=groups.coordinates.data,
        num_replicas=groups.layout.data_parallel_size,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
    )


def _open_folder(
    config: RunConfig, launch: LaunchEnvironment, layout: Layout, *, console: Console
) -> RunFolder | None:
    """Create or reopen the run folder on rank 0; return None on the others.

    Afterwards every rank logs into it, and has checked that it can save there.
    """
    ranks = Ranks(None)
    hosts = ranks.gather(socket.gethostname())
    opened: list[RunFolder] = []

    def open_here() -> None:
        folder = open_run_folder(
            config.run_dir,
            config=dump_config(config),
            overrides=sys.argv[1:],
            provenance=collect_provenance(
                hosts=hosts,
                world_size=launch.world_size,
                layout=layout.sizes(),
                command=sys.argv,
                launcher=launch.launcher,
            ),
        )
        opened.append(folder)

    ranks.on_first("open the run folder", str(config.run_dir), open_here)
    with ranks.raise_on_all_ranks("open a log file", str(config.run_dir)):
        setup_logging(launch.rank, config.run_dir, console=console)
    if config.checkpoint.interval > 0:
        check_shared(config.run_dir)
    return opened[0] if opened else None


def build_engine(
    config: RunConfig,
    groups: ParallelGroups,
    *,
    device: torch.device,
    world_size: int,
    objectives: Sequence[str] = (),
) -> TrainingEngine:
    """Build this rank's initialised model and its optimizer. Collective over all ranks.

    Args:
        config: Checked configuration.
        groups: This rank's process groups.
        device: Device of the model.
        world_size: Processes of the whole job.
        objectives: Objectives whose training losses are reported separately.
    """
    model = build_shard(config, groups=groups, device=device, recompute=config.recompute)
    initialize(model.shards(), seed=config.run.seed)
    if config.compile.enabled:
        compile_layers(model)
    return TrainingEngine(
        model,
        Pretraining(tuple(objectives)),
        config.optimizer,
        deepspeed_config=deepspeed_config(config, world_size=world_size),
        groups=groups,
    )


def _announce(
    config: RunConfig, engine: TrainingEngine, *, first_step: int, seconds: float
) -> None:
    layout = engine.groups.layout
    log.info(
        "training run=%s layout=%s zero=%d dtype=%s steps=%d..%d rows_per_step=%d "
        "micro_batches=%d startup_seconds=%.1f",
        config.run_dir,
        layout,
        config.zero.stage,
        config.precision.dtype.name,
        first_step,
        config.run.steps,
        config.batch.global_batch_size,
        config.num_micro_batches(layout.world_size),
        seconds,
    )
