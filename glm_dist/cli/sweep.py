"""Train or finetune with every combination of settings, and compare the results.

Several values of a key make the points, in Hydra's grammar: lists with commas, choice(), range();
glob() for groups. Each point is a run with a name made of run.name and the values that vary:
  glm-dist sweep finetune task=rte run.init_from=runs/base run.name=rte \
      optimizer.learning_rate=1e-5,2e-5 run.seed=1,2,3
The same command again goes on: finished points are skipped, the others resume. At the end there is
a table over the seeds, with paired differences to a baseline; <paths.runs>/<run.name>.sweep holds
it as sweep.md and sweep.json. Exit status: 0 all points are finished, 1 one of them failed, 75
stopped on request.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glm_dist.cli import train
from glm_dist.cli.arguments import refuse_given, whole_number
from glm_dist.config.checks import check_config
from glm_dist.config.launch import accelerator_is_visible, read_launch_environment
from glm_dist.config.load import config_groups, default_config_dir
from glm_dist.config.schema import RunConfig, TaskKind
from glm_dist.errors import (
    EXIT_BUG,
    EXIT_FINISHED,
    EXIT_STOPPED,
    ConfigError,
    DataError,
    GlmDistError,
    LaunchError,
)
from glm_dist.observe.tables import table_console
from glm_dist.stop_signals import StopListener, describe
from glm_dist.sweep import batch
from glm_dist.sweep.children import (
    OUTPUT_FILE,
    Ended,
    Job,
    check_launcher,
    command_of,
    last_error,
    run_jobs,
)
from glm_dist.sweep.comparison import Run, check_baseline, compare
from glm_dist.sweep.outcomes import (
    Outcome,
    check_validates,
    check_will_measure,
    has_begun,
    is_finished,
    read_outcome,
)
from glm_dist.sweep.points import Point, expand, sweep_name
from glm_dist.sweep.report import MARKDOWN_FILE, as_tables, notes, write_report
from glm_dist.train.same_run import check_same_config

TABLE_WIDTH = 200
"""Columns of the table if it is not printed on a terminal."""


@dataclass
class _Planned:
    """One point, and what is known of its run."""

    point: Point
    config: RunConfig
    arguments: tuple[str, ...]
    """Of ``glm-dist``."""
    status: str = "not started"
    outcome: Outcome | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command that is run for each point, and how."""
    parser.add_argument("program", choices=["finetune", "train"], help="command of each point")
    parser.add_argument("overrides", nargs="*", metavar="key=value[,value]")
    parser.add_argument(
        "--jobs",
        type=whole_number(at_least=1),
        metavar="N",
        help="points at a time, which share the GPUs (1)",
    )
    parser.add_argument(
        "--launcher",
        default="",
        metavar="COMMAND",
        help="starts the ranks of each point, such as 'torchrun --nproc-per-node 2'",
    )
    parser.add_argument(
        "--slurm", action="store_true", help="submit the points as a job array, and do not wait"
    )
    parser.add_argument(
        "--sbatch",
        default="",
        metavar="OPTIONS",
        help="of --slurm, as in --sbatch='--partition=gpu --time=2:00:00'",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="key=value",
        help="setting to compare with (default: the first); may be given several times",
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="compare this one (default: the task's first)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.add_argument(
        "--table", action="store_true", help="start nothing; compare what is finished"
    )
    parser.add_argument("--config-dir", type=Path, help="folder used instead of conf/")


def run(arguments: argparse.Namespace) -> int:
    """Check all points, run those that are not finished, and compare.

    Returns:
        Exit status.

    Raises:
        GlmDistError: A point would not work; none is started.
    """
    _check_options(arguments)
    points = expand(
        arguments.overrides, config_groups(arguments.config_dir or default_config_dir())
    )
    check_baseline(points, arguments.baseline)
    _say(f"checking {len(points)} points")
    planned = _planned(points, arguments)
    folder = Path(planned[0].config.paths.runs) / f"{sweep_name(arguments.overrides)}.sweep"
    left = [] if arguments.table else [each for each in planned if each.status != "finished"]
    if arguments.slurm and left:
        return _submit(planned, folder, arguments)
    if arguments.dry_run:
        for each in left:
            sys.stdout.write(f"{shlex.join(command_of(each.arguments, arguments.launcher))}\n")
        return EXIT_FINISHED
    finished = sum(each.status == "finished" for each in planned)
    _say(f"{finished} of {len(points)} points are finished")
    listener: StopListener | None = arguments.listener
    _run_points(left, arguments, total=len(points))
    _compare(planned, folder, arguments)
    if listener is not None and listener.code and left:
        _say(f"stopped by {describe(listener.code)}; the same command goes on")
        return EXIT_STOPPED
    statuses = {each.status for each in planned}
    if arguments.table or statuses == {"finished"}:
        return EXIT_FINISHED
    _say("not all points are finished; the same command tries them again")
    return EXIT_BUG if "failed" in statuses else EXIT_STOPPED


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that would be ignored, and to run inside of a job.

    Raises:
        ConfigError: Options contradict each other.
        LaunchError: A launcher started this command, or the points' launcher starts nothing.
    """
    if arguments.slurm:
        refuse_given(
            arguments, ["launcher", "table"], add_arguments, why="has no effect with --slurm"
        )
    else:
        refuse_given(arguments, ["sbatch"], add_arguments, why="needs --slurm")
    check_launcher(arguments.launcher)
    launch = read_launch_environment(os.environ, trains=False)
    if launch.world_size > 1:
        raise LaunchError(
            f"{launch.world_size} processes of a sweep were started, and each would run all"
            " points.\n"
            "  Start it without a launcher; --launcher names the one of the points.",
            key="--launcher",
            value=launch.launcher,
            fix="glm-dist sweep --launcher '<launcher>' ...",
        )


def _planned(points: Sequence[Point], arguments: argparse.Namespace) -> list[_Planned]:
    """Check every point, so that no GPU time is spent before all of them are known to work.

    Raises:
        GlmDistError: One would not work; the message names it.
    """
    is_alone = not arguments.launcher and not arguments.slurm
    options = [] if arguments.config_dir is None else ["--config-dir", str(arguments.config_dir)]
    planned, known = [], None
    for point in points:
        try:
            prepared = train.configure(point.overrides, arguments.config_dir, known=known)
            config, known = prepared.config, prepared.data
            if arguments.program == "finetune" and not _has_results(config):
                raise train.no_task()
            check_config(
                config,
                world_size=1 if is_alone else None,
                has_accelerator=not is_alone or accelerator_is_visible(os.environ),
            )
            if not _has_results(config):
                check_validates(config)
            if arguments.metric is not None:
                check_will_measure(arguments.metric, config)
            if has_begun(config):
                check_same_config(config, newest="its newest checkpoint", rows_read=0)
        except GlmDistError as error:
            raise _in_point(error, point) from error
        each = _Planned(point, config, (arguments.program, *point.overrides, *options))
        if is_finished(config, needs_results=_has_results(config)):
            _read(each)
        planned.append(each)
    return planned


def _in_point(error: GlmDistError, point: Point) -> ConfigError:
    message = f"{error}\n  In the point {point}; none was started."
    return ConfigError(message, key=error.key, value=error.value, fix=error.fix)


def _has_results(config: RunConfig) -> bool:
    """Return True for a finetuning; pretraining leaves its last validation."""
    return config.task.kind is not TaskKind.none


def _read(planned: _Planned) -> None:
    """Read a finished run's results; a run without them does not count as finished."""
    try:
        config = planned.config
        planned.outcome = read_outcome(config.run_dir, has_results=_has_results(config))
        planned.status = "finished"
    except DataError as error:
        planned.status = "failed"
        _say(f"{planned.point.name}: {error}")


def _submit(planned: Sequence[_Planned], folder: Path, arguments: argparse.Namespace) -> int:
    listed = [each.arguments for each in planned]
    for words in listed:
        batch.check_lines(words)
    numbers = [n for n, each in enumerate(planned) if each.status != "finished"]
    points = batch.points_folder(folder.absolute(), listed)
    command = batch.array_command(points, numbers, jobs=arguments.jobs, options=arguments.sbatch)
    if arguments.dry_run:
        sys.stdout.write(f"{shlex.join(command)}\n")
        return EXIT_FINISHED
    _say(batch.submit(command, points, listed))
    _say(f"{len(numbers)} of {len(planned)} points submitted; --table instead of --slurm compares")
    return EXIT_FINISHED


def _run_points(left: Sequence[_Planned], arguments: argparse.Namespace, *, total: int) -> None:
    """Run points until all have ended or the sweep is asked to stop; a line for each."""
    by_name = {each.point.name: each for each in left}
    jobs = [
        Job(each.point, each.config.run_dir, command_of(each.arguments, arguments.launcher))
        for each in left
    ]
    number = total - len(left)
    for ended in run_jobs(
        jobs,
        slots=arguments.jobs or 1,
        listener=arguments.listener,
        started=lambda job: _say(f"started   {job.point.name}"),
    ):
        planned = by_name[ended.job.point.name]
        number += 1
        _note_end(planned, ended)
        _say(
            f"{planned.status:<9} {planned.point.name}: {_summary(planned, ended)}"
            f" ({number}/{total}, {ended.seconds:.0f} s)"
        )


def _note_end(planned: _Planned, ended: Ended) -> None:
    if ended.is_stopped:
        planned.status = "stopped"
    elif ended.status != 0:
        planned.status = "failed"
    elif is_finished(planned.config, needs_results=_has_results(planned.config)):
        _read(planned)
    else:
        planned.status = "failed"


def _summary(planned: _Planned, ended: Ended) -> str:
    outcome = planned.outcome
    if outcome is not None:
        return f"{outcome.select} {outcome.valid.metrics[outcome.select].value:.4f}"
    output = ended.job.folder / OUTPUT_FILE
    if planned.status == "stopped":
        return "stopped on request"
    reason = last_error(output) if ended.status else "ended without results"
    return f"status {ended.status}: {reason}; see {output}"


def _compare(planned: Sequence[_Planned], folder: Path, arguments: argparse.Namespace) -> None:
    if all(each.outcome is None for each in planned):
        return
    runs = [Run(each.point, each.config.run.seed, each.status, each.outcome) for each in planned]
    groups = compare(runs, metric=arguments.metric, baseline=arguments.baseline)
    console = table_console(width=TABLE_WIDTH)
    for table in as_tables(groups):
        console.print(table)
    for line in notes(groups):
        sys.stdout.write(f"{line}\n")
    typed = shlex.join(["glm-dist", "sweep", arguments.program, *arguments.overrides])
    write_report(folder, groups, command=typed)
    sys.stdout.write(f"written to {folder / MARKDOWN_FILE}\n")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
