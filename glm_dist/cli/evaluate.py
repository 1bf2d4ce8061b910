"""Evaluate a run: its losses on held-out text, or benchmarks from files of examples.

glm-dist evaluate runs/large_1                        losses on the documents of validation
glm-dist evaluate runs/large_1 --split test           on those that nothing has read
glm-dist evaluate runs/large_1 --corpus news=data/news
glm-dist evaluate runs/large_1 copa.jsonl --pattern "{premise} because [MASK]."
glm-dist evaluate runs/large_1 lambada.jsonl wiki.jsonl --json results.json
glm-dist evaluate runs/rte_1                          the task that it was finetuned on
glm-dist evaluate runs/large_1 --task rte             any task, without training
"""

import argparse
import math
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from glm_dist.cli import benchmarks, task_evaluation
from glm_dist.cli.arguments import add_layout_arguments, load_for, refuse_given, whole_number
from glm_dist.config.load import load_config_file
from glm_dist.config.schema import RunConfig
from glm_dist.data.row_source import open_row_source
from glm_dist.data.tokenizer.stored import TOKENIZER_FOLDER
from glm_dist.errors import ConfigError
from glm_dist.files import is_dir
from glm_dist.observe.run_folder import CONFIG_FILE
from glm_dist.tasks.trained_run import has_own_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument("run", type=Path, help="folder of a run, such as runs/quickstart")
    parser.add_argument(
        "tasks",
        nargs="*",
        help="files of examples (JSON lines), or values of a task (task.<key>=<value>); none: the"
        " task of a finetuned run, otherwise losses",
    )
    parser.add_argument(
        "--task",
        metavar="TASK",
        help="option of conf/task or YAML file; its examples are measured without training",
    )
    add_layout_arguments(parser)
    losses = parser.add_argument_group("losses")
    losses.add_argument(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="held-out documents to measure (default: %(default)s)",
    )
    losses.add_argument(
        "--corpus",
        action="append",
        default=[],
        metavar="NAME=PREFIX",
        help="measure this corpus as well, all of it; may be repeated",
    )
    losses.add_argument(
        "--rows",
        type=whole_number(at_least=1),
        default=256,
        help="rows of each objective, over all corpora (default: %(default)s)",
    )
    benchmarks.add_arguments(parser.add_argument_group("benchmarks"))


def run(arguments: argparse.Namespace) -> int:
    """Print the losses, or the results of benchmarks.

    Returns:
        Exit status.

    Raises:
        GlmDistError: The run, its checkpoint or a corpus cannot be used.
    """
    if arguments.task or _asks_for_own_task(arguments):
        return task_evaluation.run(arguments, declare=add_arguments)
    measures_tasks = bool(arguments.tasks) or arguments.harness is not None
    useless = OF_LOSSES if measures_tasks else OF_BENCHMARKS
    kind = "losses" if measures_tasks else "benchmarks, of which none is named"
    refuse_given(arguments, useless, add_arguments, why=f"is an option of {kind}")
    if measures_tasks:
        return benchmarks.run(arguments)
    config = _with_corpora(load_config_file(arguments.run / CONFIG_FILE), arguments.corpus)
    stored = arguments.run / TOKENIZER_FOLDER
    if is_dir(stored):  # the run may have moved since
        config = replace(config, tokenizer=replace(config.tokenizer, path=str(stored)))
    source = open_row_source(config)
    rows = source.test if arguments.split == "test" else source.validation
    rows.names()  # refuses before torch is loaded
    trained = load_for(arguments)
    # Loads torch, which neither help nor a mistake above needs.
    losses: dict[str, float] = import_module("glm_dist.train.evaluate").validation_losses(
        trained,
        rows,
        num_rows=arguments.rows,
        micro_batch_size=min(config.batch.micro_batch_size, arguments.rows),
        device=next(trained.model.parameters()).device,
    )
    if trained.groups.rank == 0:
        width = max(map(len, losses), default=0)
        for name, loss in losses.items():
            line = f"{name:<{width}}  {loss:.4f} nats  perplexity {math.exp(loss):,.1f}\n"
            sys.stdout.write(line)
    return 0


def _asks_for_own_task(arguments: argparse.Namespace) -> bool:
    """Return True if a finetuned run is named and nothing else to measure."""
    others = [each for each in arguments.tasks if not task_evaluation.is_override(each)]
    is_elsewhere = others or arguments.harness is not None or arguments.corpus
    return not is_elsewhere and has_own_task(arguments.run)


OF_LOSSES = ("split", "corpus", "rows")
OF_BENCHMARKS = (
    *("pattern", "limit", "metrics", "length_penalty", "unidirectional", "window", "stride"),
    *("beams", "max_tokens", "batch_size", "json", "include"),
)
"""Options that have no effect on the other kind of evaluation."""


def _with_corpora(config: RunConfig, typed: list[str]) -> RunConfig:
    """Add corpora to those that are kept for validation.

    Raises:
        ConfigError: One is not written as name=prefix, or has a name that is taken.
    """
    added: dict[str, str] = {}
    for text in typed:
        name, equals, prefix = text.partition("=")
        if not (name and equals and prefix) or name in {*config.data.corpora, *added}:
            taken = name in {*config.data.corpora, *added}
            problem = "has a name that is taken" if taken else "is not of the form name=prefix"
            raise ConfigError(
                f"--corpus {text} {problem}.\n"
                "  Write for example --corpus news=data/news, with a new name.",
                key="--corpus",
                value=text,
                fix="--corpus news=data/news",
            )
        added[name] = prefix
    kept = {**config.data.validation_corpora, **added}
    return replace(config, data=replace(config.data, validation_corpora=kept))
