"""Train a GLM, or finetune one on a task: compose the configuration, check it, train.

Values are set as key=value, options of a group as group=option:
  train.py experiment=glm_large parallel=tp2 optimizer.learning_rate=1e-4
docs/config.md lists every key; --cfg job prints the outcome. Start several processes with
deepspeed, torchrun or srun.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from glm_dist.cli.arguments import add_config_arguments, options_of_groups
from glm_dist.cli.gpus import refuse_idle_gpus
from glm_dist.cli.once import print_once
from glm_dist.config.checks import check_config
from glm_dist.config.launch import (
    LaunchEnvironment,
    accelerator_is_visible,
    hide_gpus_if_asked,
    read_launch_environment,
)
from glm_dist.config.load import dump_config, load_config
from glm_dist.config.schema import RunConfig, TaskKind
from glm_dist.config.surroundings import refuse_dropped, with_threads
from glm_dist.errors import EXIT_FINISHED, EXIT_STOPPED, ConfigError, GlmDistError
from glm_dist.stop_signals import StopListener, describe
from glm_dist.tasks.examples import Examples, read_benchmarks
from glm_dist.tasks.finetune import Finetuning, complete
from glm_dist.tasks.task_data import TaskData
from glm_dist.train.already import is_finished, note_run_folder
from glm_dist.train.preflight import check_files

if TYPE_CHECKING:
    from glm_dist.train.workload import OpenWorkload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides, and Hydra's options that make sense here."""
    parser.epilog = options_of_groups()
    add_config_arguments(parser)
    parser.add_argument("--cfg", choices=["job"], help="print the configuration and stop")
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)


def configure(
    overrides: Sequence[str], config_dir: Path | None, *, known: TaskData | None = None
) -> Finetuning:
    """Compose a configuration and check all that can be checked before a launch.

    Args:
        overrides: As typed.
        config_dir: Folder used instead of conf/.
        known: Examples of another configuration; see ``complete``.

    Raises:
        GlmDistError: The job would not work.
    """
    config = load_config(overrides, config_dir=config_dir)
    prepared = complete(config, overrides, config_dir=config_dir, known=known)
    check_files(prepared.config, read_data=prepared.facts)
    read_benchmarks(prepared.config)
    return prepared


def run(arguments: argparse.Namespace, *, needs_task: bool = False) -> int:
    """Check, then train.

    Args:
        arguments: As declared.
        needs_task: Refuse pretraining.

    Returns:
        Exit status: see ``train.job.run``; 2 if what the user asked for cannot be done, 75 if a
        single process is asked to stop before torch is loaded.

    Raises:
        LaunchError: The variables of the launcher contradict each other, or are incomplete.
    """
    launch = read_launch_environment(os.environ, trains=not arguments.cfg)
    refuse_dropped(launch, os.environ)
    hide_gpus_if_asked(os.environ)
    try:
        if arguments.multirun:
            raise _multirun()
        config = load_config(arguments.overrides, config_dir=arguments.config_dir)
        if needs_task and config.task.kind is TaskKind.none:
            raise no_task()
        check_config(
            config,
            world_size=launch.world_size,
            has_accelerator=accelerator_is_visible(os.environ),
        )
    except GlmDistError as error:
        return print_once(error, launch, is_everywhere=True)
    if launch.rank == 0 and not arguments.cfg:
        note_run_folder(config, os.environ)
    try:
        # A task's last step is known when its examples have been read.
        if config.task.kind is TaskKind.none and not arguments.cfg and is_finished(config):
            return _say_finished(config, launch)
        prepared = complete(config, arguments.overrides, config_dir=arguments.config_dir)
        config = prepared.config
        if arguments.cfg:
            if launch.rank == 0:
                sys.stdout.write(dump_config(config))
            return 0
        if is_finished(config):
            return _say_finished(config, launch)
        found = check_files(config, asks_store=launch.rank == 0, read_data=prepared.facts)
        examples = read_benchmarks(config)
    except GlmDistError as error:
        return print_once(error, launch, is_everywhere=False)
    if launch.rank == 0:
        warnings = [*found.warnings, *_warn_of_place(config, launch)]
        sys.stderr.write("".join(f"warning: {text}\n" for text in warnings))
    listener: StopListener | None = arguments.listener
    if listener is not None and listener.code and launch.world_size == 1:
        reason = describe(listener.code)
        sys.stderr.write(f"stopped before training; nothing to save reason={reason}\n")
        return EXIT_STOPPED
    return _train(prepared, launch, examples, listener=listener)


def _warn_of_place(config: RunConfig, launch: LaunchEnvironment) -> Iterator[str]:
    """Say where the run goes if a variable may have been lost on the way to this host."""
    has_hosts = launch.world_size > launch.local_world_size
    if launch.launcher == "deepspeed" and has_hosts and "GLM_RUNS" not in os.environ:
        yield f"the run folder is {config.run_dir.resolve()}; deepspeed hands on no GLM_RUNS"


def _say_finished(config: RunConfig, launch: LaunchEnvironment) -> int:
    if launch.rank == 0:
        sys.stderr.write(f"{config.run_dir} is finished: {config.run.steps} steps\n")
    return EXIT_FINISHED


def _train(
    prepared: Finetuning,
    launch: LaunchEnvironment,
    examples: Sequence[Examples],
    *,
    listener: StopListener | None,
) -> int:
    """Train in this process; loads torch."""
    launch = with_threads(launch, os.environ)
    if launch.threads is not None and launch.rank == 0:
        sys.stderr.write(
            f"OMP_NUM_THREADS={launch.threads}: the cores of a host divided among its"
            f" {launch.local_world_size} processes\n"
        )
    # Read when torch is loaded: its C++ code warns of every lost connection in 25 lines.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # no line for each start and stop of a profile
    refused = refuse_idle_gpus(launch)
    if refused is not None:
        return refused
    job = import_module("glm_dist.train.job")
    benchmarks = None
    if examples:
        tool = import_module("glm_dist.tasks.training")
        benchmarks = tool.TrainingBenchmarks(prepared.config, examples)
    status: int = job.run(
        prepared.config,
        launch,
        workload=workload_of(prepared.data),
        benchmarks=benchmarks,
        listener=listener,
    )
    return status


def workload_of(data: TaskData | None) -> "OpenWorkload":
    """Choose what is learned; see ``tasks.workload.open_with``. Loads torch."""
    workload: OpenWorkload = import_module("glm_dist.tasks.workload").open_with(data)
    return workload


def no_task() -> ConfigError:
    """Build the error for a finetuning without a task."""
    return ConfigError(
        "glm-dist finetune needs a task.\n"
        "  Set task=<option of conf/task> or task=<file>.yaml; see docs/finetuning.md.",
        key="task",
        value=None,
        fix="task=<file>.yaml",
    )


def _multirun() -> ConfigError:
    return ConfigError(
        "--multirun would train several runs in one process, where they share its state.\n"
        "  Start one process for each: glm-dist sweep train key=value,value ...",
        key="command line",
        value="--multirun",
        fix="glm-dist sweep train key=value,value ...",
    )
