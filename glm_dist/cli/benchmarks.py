"""Benchmarks of ``glm-dist evaluate``: files of examples, and lm-evaluation-harness."""

import argparse
import math
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from glm_dist.cli.arguments import load_for, whole_number
from glm_dist.config.load import load_config_file
from glm_dist.data.prepare.output import output_file
from glm_dist.errors import ConfigError
from glm_dist.files import exists, is_dir, is_file, write_result
from glm_dist.generate.prompt_checks import check_writes
from glm_dist.generate.sampling import BeamSearch, GenerationOptions
from glm_dist.json_text import json_text
from glm_dist.observe.run_folder import CONFIG_FILE
from glm_dist.observe.tables import table_console
from glm_dist.tasks.examples import read_examples

if TYPE_CHECKING:
    from glm_dist.tasks.evaluate import Result

METRICS = ("em", "f1", "rouge_l", "bleu")


def add_arguments(group: Any) -> None:
    """Declare the options of benchmarks.

    Args:
        group: Group of an argument parser.
    """
    group.add_argument(
        "--pattern",
        metavar="TEXT",
        help="prompt with fields of the examples, such as '{question} [MASK].' (default: inputs)",
    )
    group.add_argument(
        "--limit", type=whole_number(at_least=1), metavar="N", help="N examples, drawn at random"
    )
    group.add_argument(
        "--metrics",
        default="em,f1",
        metavar="NAMES",
        help=f"of answers: {', '.join(METRICS)} (default: %(default)s)",
    )
    group.add_argument(
        "--length-penalty",
        type=float,
        default=0.0,
        metavar="P",
        help="choices and beams are compared by log-probability / tokens ^ P (%(default)s)",
    )
    group.add_argument(
        "--unidirectional", action="store_true", help="read texts from left to right only"
    )
    group.add_argument(
        "--window", type=whole_number(at_least=2), help="tokens of perplexity's windows"
    )
    group.add_argument(
        "--stride", type=whole_number(at_least=1), help="new tokens of each window (half of it)"
    )
    group.add_argument("--beams", type=whole_number(at_least=1), help="beam search (greedy)")
    group.add_argument(
        "--max-tokens", type=whole_number(at_least=1), default=64, help="longest answer (64)"
    )
    group.add_argument(
        "--batch-size", type=whole_number(at_least=1), default=16, help="answers at a time (16)"
    )
    group.add_argument("--json", metavar="FILE", help="write results and predictions")
    group.add_argument(
        "--harness",
        metavar="TASKS",
        help="tasks of lm-evaluation-harness, with commas; needs the extra harness",
    )
    group.add_argument(
        "--include", type=Path, metavar="DIR", help="folder of the harness's own task files"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print a table.

    Returns:
        Exit status.

    Raises:
        GlmDistError: The run or a file of examples cannot be used.
    """
    names = _metrics(arguments.metrics)
    if arguments.json is not None:
        check_result(arguments.json)
    config = load_config_file(arguments.run / CONFIG_FILE)
    check_writes(config.corruption, run=str(arguments.run))
    tasks = [
        read_examples(Path(file), pattern=arguments.pattern, limit=arguments.limit)
        for file in arguments.tasks
    ]
    harness, chosen = None, []
    if arguments.harness:
        chosen = arguments.harness.split(",")
        harness = import_module("glm_dist.tasks.harness")
        library = harness.open_library(chosen, arguments.include)  # refuses before the model loads
    model = load_for(arguments)
    tool = import_module("glm_dist.tasks.evaluate")  # loads torch
    beams = arguments.beams
    settings = tool.Settings(
        batch_size=arguments.batch_size,
        length_penalty=arguments.length_penalty,
        unidirectional=arguments.unidirectional,
        window=arguments.window,
        stride=arguments.stride,
        metrics=names,
        generation=GenerationOptions(
            max_tokens=arguments.max_tokens,
            beam_search=BeamSearch(beams, arguments.length_penalty) if beams else None,
        ),
    )
    results = [tool.evaluate(model, examples, settings) for examples in tasks]
    found = {}
    if harness:
        found = harness.evaluate(model, chosen, settings, library=library, limit=arguments.limit)
    if model.groups.rank == 0:
        _show(results, found)
        if arguments.json is not None:
            text = _as_json(results, found, arguments.run, model.step)
            write_result(Path(arguments.json), text)
    return 0


def _metrics(typed: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in typed.split(","))
    for name in names:
        if name not in METRICS:
            raise ConfigError(
                f"--metrics {name!r} is unknown; there are {', '.join(METRICS)}.\n"
                "  Choose some of these.",
                key="--metrics",
                value=name,
                fix=f"--metrics {METRICS[0]}",
            )
    return names


def check_result(path: str) -> None:
    """Refuse a name under which no results can be written, before they are computed.

    Raises:
        DataError: It is empty or a folder, or its folder cannot be written to.
    """
    place = Path(path)
    if not exists(place) or is_file(place) or is_dir(place):
        output_file(path, option="--json")


def _show(results: "list[Result]", harness: dict[str, dict[str, float]]) -> None:
    console = table_console()
    table = Table("task", "examples", "metric", "value", "95 % interval")
    for result in results:
        for name, mean in result.metrics.items():
            interval = "" if math.isnan(mean.low) else f"{mean.low:.4g} to {mean.high:.4g}"
            table.add_row(
                escape(result.task), f"{result.num_examples:,}", name, f"{mean.value:.4g}", interval
            )
    for task, metrics in harness.items():
        for name, value in metrics.items():
            table.add_row(escape(task), "", name, f"{value:.4g}", "")
    console.print(table)


def _as_json(
    results: "list[Result]", harness: dict[str, dict[str, float]], run: Path, step: int
) -> str:
    content = {
        "run": str(run),
        "step": step,
        "tasks": [
            {
                "task": result.task,
                "kind": result.kind.value,
                "examples": result.num_examples,
                "metrics": {name: asdict(mean) for name, mean in result.metrics.items()},
                "predictions": result.predictions,
            }
            for result in results
        ],
        "harness": harness,
    }
    return json_text(content, indent=1)
