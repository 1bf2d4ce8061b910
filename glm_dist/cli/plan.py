"""Say what a run will need before it has any GPU: layout, memory, time, cost, checkpoints.

Ranks all ways to cut the run over the GPUs by predicted speed and says why the others do not work.
Values given on the command line are kept; the experiment's own choices of layout, ZeRO stage,
micro-batch and recomputation are open. docs/planning.md has the model and how far off it was.

  glm-dist plan experiment=glm_10b --gpus 256 --gpu h100
  glm-dist plan experiment=glm_2b zero=stage1 --gpus 64 --gpu a100-80 --write launchers/my_2b.sh
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from glm_dist.cli.arguments import add_config_arguments, whole_number
from glm_dist.cli.plan_script import batch_script
from glm_dist.config.checks import check_config
from glm_dist.config.parameter_specs import count_parameters
from glm_dist.config.schema import RunConfig
from glm_dist.data.prepare.output import output_file
from glm_dist.errors import GlmDistError, LaunchError
from glm_dist.files import write_atomically
from glm_dist.json_text import json_text
from glm_dist.observe.tables import table_console
from glm_dist.parallel.layout import Layout
from glm_dist.plan.cluster import Cluster
from glm_dist.plan.gpus import gpu_named
from glm_dist.plan.saves import GPU_HOURS_PER_FAILURE, RESTART_SECONDS, SavePlan, plan_saves
from glm_dist.plan.search import SEARCHED, Plan, Ranking, load_open, make_plan, rank_plans
from glm_dist.plan.verdict import describe_parts
from glm_dist.plan.wording import gib
from glm_dist.tasks.finetune import configure
from glm_dist.train.room import checkpoints_on_disk

WIDTH = 100
GROUPS = {
    "parallel": tuple(key for key in SEARCHED if key.startswith("parallel.")),
    "zero": ("zero.stage",),
    "recompute": ("recompute.mode", "recompute.segment_layers"),
}
"""Keys that a group on the command line decides."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides and options."""
    add_config_arguments(parser)
    at_least_one = whole_number(at_least=1)
    parser.add_argument(
        "--gpus", type=at_least_one, help="GPUs of the job (default: nodes for one replica)"
    )
    parser.add_argument("--gpu", default="h100", metavar="NAME", help="their kind (%(default)s)")
    parser.add_argument(
        "--gpus-per-node", type=at_least_one, default=8, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--network",
        type=_positive,
        default=400.0,
        metavar="GBIT",
        help="Gbit/s between nodes for each GPU, one direction (%(default)g)",
    )
    parser.add_argument(
        "--storage",
        type=_positive,
        default=10.0,
        metavar="GB",
        help="GB/s that the job writes to its file system (%(default)g)",
    )
    parser.add_argument(
        "--failure-hours",
        type=_positive,
        default=GPU_HOURS_PER_FAILURE,
        metavar="HOURS",
        help="GPU hours between failures that end the job (%(default)g)",
    )
    parser.add_argument(
        "--top", type=at_least_one, default=10, metavar="N", help="layouts to show (%(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything as JSON as well; - prints it"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write a batch script for the fastest layout"
    )


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Print the plan.

    Returns:
        Exit status: 1 if no layout fits.

    Raises:
        GlmDistError: The configuration is wrong whatever the layout, values on the command line
            contradict each other, examples of a task cannot be read, or a GPU is unknown.
    """
    gpu = gpu_named(arguments.gpu)
    prepared = configure(arguments.overrides, config_dir=arguments.config_dir, load=load_open)
    config = prepared.config
    rows = 1 if prepared.data is None else prepared.data.rows_per_example
    each = arguments.gpus_per_node
    gpus = arguments.gpus or -(-Layout.from_config(config).world_size // each) * each
    _check_nodes(gpus, each)
    _check_dtype(config, gpu.name, has_bf16=gpu.has_bf16)
    cluster = Cluster(gpu, each, arguments.network / 8)
    fixed = _fixed(arguments.overrides)
    ranking = rank_plans(config, cluster, gpus, fixed=fixed, rows_per_item=rows)
    if not ranking.plans and "memory" not in ranking.left_out:
        check_config(config, world_size=gpus)  # names the values to change
    saves = plan_saves(
        config,
        gpus,
        storage_bytes_per_second=arguments.storage * 1e9,
        gpu_hours_per_failure=arguments.failure_hours,
    )
    _check_progress(saves)
    if arguments.write is not None and ranking.plans:
        file = output_file(arguments.write, option="--write")
        script = batch_script(
            ranking.plans[0],
            typed=[*arguments.overrides, *_folder(arguments.config_dir)],
            name=file.stem,
            file=str(arguments.write),
            gpus_per_node=each,
        )
        write_atomically(file, script)
        file.chmod(0o755)
    if arguments.json is not None:
        _write_json(ranking, saves, arguments.json, gpus=gpus)
    if str(arguments.json) != "-":
        shown = ranking.plans[: arguments.top]
        _show(config, ranking, shown, saves, cluster, gpus, table_console(width=WIDTH))
    return 0 if ranking.plans else 1


def _folder(config_dir: Path | None) -> list[str]:
    return [] if config_dir is None else [f"--config-dir={config_dir}"]


def _fixed(overrides: Sequence[str]) -> set[str]:
    """Return the searched keys that the command line decides."""
    typed = {text.lstrip("+").partition("=")[0] for text in overrides}
    return {
        key
        for key in SEARCHED
        if key in typed or any(group in typed and key in keys for group, keys in GROUPS.items())
    }


def _check_nodes(gpus: int, gpus_per_node: int) -> None:
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise LaunchError(
            f"--gpus {gpus} does not fill nodes of {gpus_per_node}.\n"
            f"  Choose {gpus - gpus % gpus_per_node} or {gpus + -gpus % gpus_per_node}, or other"
            " --gpus-per-node.",
            key="--gpus",
            value=gpus,
            fix=f"--gpus {gpus + -gpus % gpus_per_node}",
        )


def _check_dtype(config: RunConfig, gpu: str, *, has_bf16: bool) -> None:
    if config.precision.dtype.name == "bf16" and not has_bf16:
        raise LaunchError(
            f"precision=bf16: {gpu} multiplies no bf16.\n  Set precision=fp16.",
            key="precision.dtype",
            value="bf16",
            fix="precision=fp16",
        )


def _check_progress(saves: SavePlan) -> None:
    if saves.lost_share >= 1:
        raise LaunchError(
            f"The job would never end: something fails every {saves.hours_between_failures:.3g}"
            f" hours, a save takes {saves.write:,.3g} s and a restart {RESTART_SECONDS:g} s.\n"
            "  Set --failure-hours to the GPU hours between failures (not those of the job), or"
            " choose fewer --gpus or a larger --storage.",
            key="--failure-hours",
            value=saves.hours_between_failures,
            fix=f"--failure-hours {GPU_HOURS_PER_FAILURE:g}",
        )


# --- text ---


def _show(
    config: RunConfig,
    ranking: Ranking,
    shown: Sequence[Plan],
    saves: SavePlan,
    cluster: Cluster,
    gpus: int,
    console: Console,
) -> None:
    batch, nodes = config.batch, -(-gpus // cluster.gpus_per_node)
    parameters = count_parameters(config.model, config.padded_vocab_size)
    rows = batch.global_batch_size * ranking.rows_per_item
    tokens = rows * batch.row_length
    lines = [
        (
            "run",
            f"{config.run.name}: {parameters:,} parameters, {config.run.steps:,} steps of"
            f" {rows:,} rows x {batch.row_length} = {tokens:,} tokens",
        ),
        (
            "machine",
            f"{gpus} x {cluster.gpu.name} with {gib(cluster.gpu.memory)}, nodes: {nodes};"
            f" {cluster.network_gb_per_second * 8:g} Gbit/s per GPU between nodes",
        ),
        ("as given", _as_given(config, cluster, gpus, rows_per_item=ranking.rows_per_item)),
    ]
    _lines(lines, console)
    if shown:
        console.print(_table(shown, saves))
        _lines(_describe(ranking.plans[0], saves, gpus), console)
    else:
        console.print("No layout works.")
    for key, entry in sorted(ranking.left_out.items(), key=lambda item: -item[1].count):
        _lines([("left out", f"{entry.count:,} by {key}: {entry.reason}")], console)


def _lines(lines: Sequence[tuple[str, str]], console: Console) -> None:
    for title, text in lines:
        console.print(f"{title:<12}{text}", markup=False, highlight=False, soft_wrap=True)


def _as_given(config: RunConfig, cluster: Cluster, gpus: int, *, rows_per_item: int) -> str:
    try:
        plan = make_plan(config, cluster, gpus, rows_per_item=rows_per_item)
    except GlmDistError as error:
        return f"refused: {str(error).splitlines()[0]}"
    if plan.missing > 0:
        return f"does not fit: {plan.memory} misses {gib(plan.missing)} ({_cut(plan)})"
    return f"{plan.time.total:.3g} s a step, MFU {plan.mfu:.1%} ({_cut(plan)})"


def _cut(plan: Plan) -> str:
    layout, config = plan.layout, plan.config
    virtual = f" x vp {layout.virtual_stages}" if layout.virtual_stages > 1 else ""
    return (
        f"tp {layout.tensor_parallel_size} x pp {layout.pipeline_parallel_size}{virtual} x dp"
        f" {layout.data_parallel_size}, ZeRO {config.zero.stage}, micro-batch"
        f" {config.batch.micro_batch_size}, recompute {config.recompute.mode.name}"
    )


def _table(plans: Sequence[Plan], saves: SavePlan) -> Table:
    names = ("tp", "pp", "vp", "dp", "ZeRO", "rows", "recompute", "GiB", "s a step", "tokens/s")
    table = Table("", *names, "MFU", "bubble", "time", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.justify = "right"
    for number, plan in enumerate(plans, start=1):
        layout, time = plan.layout, plan.time
        table.add_row(
            str(number),
            str(layout.tensor_parallel_size),
            str(layout.pipeline_parallel_size),
            str(layout.virtual_stages),
            str(layout.data_parallel_size),
            str(plan.config.zero.stage),
            str(plan.config.batch.micro_batch_size),
            plan.config.recompute.mode.name,
            f"{plan.memory.memory.total / 2**30:.1f}",
            f"{time.total:.3g}",
            f"{plan.tokens_per_second:,.0f}",
            f"{plan.mfu:.1%}",
            f"{time.bubble / time.total:.0%}",
            _duration(_days(plan, saves)),
        )
    return table


def _days(plan: Plan, saves: SavePlan) -> float:
    return plan.config.run.steps * plan.time.total / (1 - saves.lost_share) / 86_400


def _duration(days: float) -> str:
    for unit, seconds in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if days * 86_400 >= 2 * seconds:
            return f"{days * 86_400 / seconds:,.3g} {unit}"
    return f"{days * 86_400:.3g} s"


def _describe(plan: Plan, saves: SavePlan, gpus: int) -> list[tuple[str, str]]:
    """Explain the fastest plan."""
    parts = {name: value for name, value in asdict(plan.time).items() if value > 0}
    of_step = ", ".join(
        f"{name} {value / plan.time.total:.0%}"
        for name, value in sorted(parts.items(), key=lambda part: -part[1])
        if value >= 0.005 * plan.time.total
    )
    days = _days(plan, saves)
    config = plan.config
    interval = min(max(round(saves.interval / plan.time.total), 1), config.run.steps)
    lines = [
        ("1", f"{_cut(plan)}: {' '.join(plan.overrides) or 'as given'}"),
        ("time", of_step),
        ("memory", f"{gib(plan.memory.memory.total)}, {plan.memory}"),
        ("", describe_parts(plan.memory.memory)),
        (
            "cost",
            f"{_duration(days)}, {days * 24 * gpus:,.1f} GPU hours; {saves.lost_share:.1%} for"
            f" saves and failures, one every {saves.hours_between_failures:,.0f} hours",
        ),
        (
            "saves",
            f"{saves.checkpoint_bytes / 1e9:,.4g} GB each, {saves.write:,.3g} s of writing; best"
            f" every {_duration(saves.interval / 86_400)}: checkpoint.interval={interval} (now"
            f" {config.checkpoint.interval})",
        ),
    ]
    if config.checkpoint.interval > 0:
        count = checkpoints_on_disk(config)
        size = count * saves.checkpoint_bytes / 1e9
        lines.append(("disk", f"{size:,.4g} GB for {count} checkpoints"))
    return lines


# --- JSON ---


def _write_json(ranking: Ranking, saves: SavePlan, file: Path, *, gpus: int) -> None:
    content: dict[str, Any] = {
        "version": 1,
        "plans": [_plan_json(plan, saves, gpus) for plan in ranking.plans],
        "left_out": {key: asdict(entry) for key, entry in ranking.left_out.items()},
        "saves": asdict(saves),
    }
    text = json_text(content, indent=1) + "\n"
    if str(file) == "-":
        sys.stdout.write(text)
    else:
        write_atomically(output_file(file, option="--json"), text)


def _plan_json(plan: Plan, saves: SavePlan, gpus: int) -> dict[str, Any]:
    days = _days(plan, saves)
    return {
        "overrides": plan.overrides,
        "layout": plan.layout.sizes() | {"virtual_stages": plan.layout.virtual_stages},
        "seconds": asdict(plan.time) | {"total": plan.time.total},
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "memory": asdict(plan.memory.memory)
        | {"total": plan.memory.memory.total, "rank": plan.memory.rank},
        "days": days,
        "gpu_hours": days * 24 * gpus,
    }
