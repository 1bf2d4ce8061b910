"""Compare pretraining objectives: pretrain each on the same text, finetune each, print a table.

glm-dist compare experiment=compare_objectives run.name=objectives
glm-dist compare experiment=compare_objectives run.name=objectives --jobs 2
glm-dist compare experiment=compare_objectives run.name=objectives --table

The folder <paths.runs>/<run.name> gets a folder for each run, and table.md and table.json. What is
finished is skipped when the command is given again. docs/objectives.md says what is compared.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from importlib import import_module

from glm_dist.cli.arguments import add_config_arguments, whole_number
from glm_dist.cli.gpus import refuse_idle_gpus
from glm_dist.cli.once import print_once
from glm_dist.cli.side_by_side import run_side_by_side
from glm_dist.config.launch import (
    LaunchEnvironment,
    hide_gpus_if_asked,
    read_launch_environment,
)
from glm_dist.errors import EXIT_FINISHED, ConfigError, GlmDistError, LaunchError
from glm_dist.files import write_atomically
from glm_dist.tasks.compare.plan import Comparison, plan
from glm_dist.tasks.compare.report import make_report

TABLE = "table"
"""Name of the files with the table, without suffix."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides and options."""
    add_config_arguments(parser)
    parser.add_argument(
        "--jobs",
        type=whole_number(at_least=1),
        default=1,
        help="processes side by side, each with one thread; for CPUs (default: %(default)s)",
    )
    parser.add_argument(
        "--table", action="store_true", help="only make the table of a finished comparison"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Check, then do what is not finished, then print the table.

    Returns:
        Exit status, as of training.
    """
    launch = read_launch_environment(os.environ, trains=True)
    hide_gpus_if_asked(os.environ)
    try:
        if arguments.jobs > 1 and launch.world_size > 1:
            raise _too_many(launch.world_size)
        comparison = plan(arguments.overrides, config_dir=arguments.config_dir)
    except GlmDistError as error:
        return print_once(error, launch, is_everywhere=False)
    unfinished = [job.name for job in comparison.jobs() if not job.is_finished]
    status = EXIT_FINISHED
    if arguments.table and unfinished:
        raise _unfinished(unfinished)
    if arguments.jobs > 1 and unfinished:
        status = run_side_by_side(_command(arguments), arguments.jobs, arguments.listener)
    elif unfinished:
        status = _work(comparison, launch, arguments)
    if status == EXIT_FINISHED and launch.rank == 0 and not arguments.worker:
        _write_table(comparison)
    return status


def _work(comparison: Comparison, launch: LaunchEnvironment, arguments: argparse.Namespace) -> int:
    """Work in this process; loads torch."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    refused = refuse_idle_gpus(launch)
    if refused is not None:
        return refused
    work = import_module("glm_dist.tasks.compare.work")
    config = comparison.config
    status: int = import_module("glm_dist.train.member").as_member(
        partial(work.work_through, comparison),
        launch,
        timeout=timedelta(minutes=config.parallel.timeout_minutes),
        watchdog=config.watchdog,
        listener=arguments.listener,
    )
    return status


def _command(arguments: argparse.Namespace) -> list[str]:
    """Return the command of one worker."""
    config_dir = [] if arguments.config_dir is None else [f"--config-dir={arguments.config_dir}"]
    program = [sys.executable, "-m", "glm_dist", "compare", "--worker"]
    return [*program, *config_dir, *arguments.overrides]


def _write_table(comparison: Comparison) -> None:
    report = make_report(comparison)
    for suffix, text in ((".md", report.markdown()), (".json", report.as_json())):
        write_atomically(comparison.folder / f"{TABLE}{suffix}", text)
    sys.stdout.write(report.markdown())


def _too_many(world_size: int) -> LaunchError:
    return LaunchError(
        f"--jobs starts processes by itself, and {world_size} were started by a launcher.\n"
        "  Leave --jobs out, or start the command without a launcher.",
        key="--jobs",
        value=world_size,
        fix="leave --jobs out",
    )


def _unfinished(names: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"The comparison has {len(names)} unfinished jobs, the first of them {names[0]}.\n"
        "  Start it without --table; it does only what is missing.",
        key="--table",
        value=names[0],
        fix="leave --table out",
    )
