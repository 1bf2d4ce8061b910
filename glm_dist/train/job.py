"""One pretraining job on one rank, from a checked configuration to the last checkpoint."""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from rich.console import Console

from glm_dist.checkpoint.folders import list_steps
from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.save import check_shared
from glm_dist.config.launch import LaunchEnvironment
from glm_dist.config.load import dump_config
from glm_dist.config.schema import Resume, RunConfig
from glm_dist.data.loader import training_batches
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.data.rows import MicroBatch
from glm_dist.data.tokenizer.stored import store_tokenizer
from glm_dist.errors import CheckpointError
from glm_dist.model.chunks import build_stage
from glm_dist.model.compiled import compile_layers
from glm_dist.model.parameters import initialize
from glm_dist.observe.log import quiet_libraries, setup_logging
from glm_dist.observe.run_folder import RunFolder, collect_provenance, open_run_folder
from glm_dist.observe.sinks import SinkGroup, open_sinks
from glm_dist.parallel.errors import Ranks
from glm_dist.parallel.groups import ParallelGroups, build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.process import start_process
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.loop import TrainingRun, train
from glm_dist.train.preemption import EXIT_STOPPED, EXIT_UNSAVED, StopRequest
from glm_dist.train.preflight import CHECKPOINTS
from glm_dist.train.same_run import check_same_rows
from glm_dist.train.state import restore_state

log = logging.getLogger(__name__)


def run(config: RunConfig, launch: LaunchEnvironment) -> int:
    """Train. Collective over all ranks of the job.

    Args:
        config: Checked against the world size and the files.
        launch: Who this process is.

    Returns:
        Exit status: 0 finished, 75 asked to stop and saved, 130 asked to stop and not saved.

    Raises:
        GlmDistError: On every rank, with one message.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    setup_logging(launch.rank, console=console)
    timeout = timedelta(minutes=config.parallel.timeout_minutes)
    device = start_process(launch, timeout)
    layout = Layout.from_config(config, launch.world_size)
    groups = build_groups(layout, timeout)
    folder = _open_folder(config, launch, layout, console=console)
    with Ranks(None).together("open the corpora", "data.corpora"):
        source = open_row_source(config)
    engine = build_engine(config, groups, device=device, world_size=launch.world_size)
    quiet_libraries()
    identity = cast(dict[str, Json], {"data": source.fingerprint()})
    first_step = _resume(config, engine, identity)
    Ranks(None).on_first(
        "keep the tokenizer",
        str(config.run_dir),
        lambda: store_tokenizer(config.tokenizer, config.run_dir),
    )
    sink = SinkGroup()
    if folder is not None:
        _announce(config, engine, first_step=first_step, seconds=time.monotonic() - started)
        attempt = folder.attempt
        sink = open_sinks(
            config, attempt=attempt, first_step=first_step, console=console, environ=os.environ
        )
    work = TrainingRun(
        config=config,
        engine=engine,
        batches=_batches(config, source, groups, first_step=first_step),
        validation_row=source.validation_row,
        objectives=source.objectives,
        stop_request=StopRequest(),
        sink=sink,
        checkpoints=config.run_dir / CHECKPOINTS,
        identity=identity,
        device=device,
    )
    try:
        is_finished = train(work, first_step=first_step)
    finally:
        sink.close()
    dist.barrier()
    dist.destroy_process_group()
    return 0 if is_finished else _stopped_status(config, launch)


def _stopped_status(config: RunConfig, launch: LaunchEnvironment) -> int:
    """Whether starting the run again would bring it further."""
    if config.checkpoint.interval > 0:
        return EXIT_STOPPED
    if launch.rank == 0:
        log.warning(
            "stopped without a checkpoint, as checkpoint.interval=0; status=%d", EXIT_UNSAVED
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
    """Create or continue the run folder on rank 0, which keeps it; None on the others.

    Every rank logs into it afterwards, and has seen that it can save there.
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
    with ranks.together("open its log file", str(config.run_dir)):
        setup_logging(launch.rank, config.run_dir, console=console)
    if config.checkpoint.interval > 0:
        check_shared(config.run_dir)
    return opened[0] if opened else None


def build_engine(
    config: RunConfig, groups: ParallelGroups, *, device: torch.device, world_size: int
) -> TrainingEngine:
    """This rank's model with its first weights, and its optimizer. Collective over all ranks.

    Args:
        config: Checked configuration.
        groups: This rank's process groups.
        device: Where the model lives.
        world_size: Processes of the whole job.
    """
    stage = build_stage(
        config.model,
        vocab_size=config.tokenizer.vocab_size,
        padded_vocab_size=config.padded_vocab_size,
        dtype=config.precision.dtype,
        groups=groups,
        device=device,
        recompute=config.recompute,
    )
    initialize(stage.shards(), seed=config.run.seed)
    if config.compile.enabled:
        compile_layers(stage)
    return TrainingEngine(
        stage,
        config.optimizer,
        deepspeed_config=deepspeed_config(config, world_size=world_size),
        groups=groups,
    )


def _resume(config: RunConfig, engine: TrainingEngine, identity: Mapping[str, Json]) -> int:
    """Continue from the newest complete checkpoint, if the run may; the steps done.

    Raises:
        CheckpointError: The checkpoint was trained on other data, there are some and none is
            complete, or there must be one and is not.
    """
    if config.checkpoint.resume is Resume.never:
        return 0
    folder = config.run_dir / CHECKPOINTS
    info = find_checkpoint(folder)
    if info is None:
        Ranks(None).on_first(
            "see whether the run is new", str(folder), lambda: _check_is_new(folder)
        )
        if config.checkpoint.resume is Resume.must:
            raise CheckpointError(
                key="checkpoint.resume",
                found="must, without a complete checkpoint",
                expected=f"a complete checkpoint in {folder}",
                fix="begin anew with checkpoint.resume=auto, or restore the checkpoint's files",
            )
        return 0
    check_same_rows(
        config, info.path, saved=info.manifest.extra.get("data"), current=identity["data"]
    )
    return restore_state(engine, info)


def _check_is_new(folder: Path) -> None:
    """Refuse to begin at step 0 beside checkpoints that nobody could read: that hides a loss.

    Raises:
        CheckpointError: There are folders of steps.
    """
    steps = list_steps(folder)
    if steps:
        raise CheckpointError(
            key=str(folder),
            found=f"{len(steps)} checkpoint(s), none usable",
            expected="at least one as it was written, to continue from; the log says what is wrong",
            fix="restore the files, or begin another run with run.name=...",
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
