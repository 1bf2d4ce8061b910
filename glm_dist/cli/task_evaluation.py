"""A task in ``glm-dist evaluate``: the run's own after finetuning, or any other."""

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from glm_dist.cli.arguments import load_for, refuse_given
from glm_dist.cli.benchmarks import check_result
from glm_dist.errors import ConfigError
from glm_dist.files import write_result
from glm_dist.observe.tables import table_console
from glm_dist.tasks.metrics import check_libraries
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.trained_run import OWN, open_task

if TYPE_CHECKING:
    from glm_dist.tasks.outcome import Outcome

WITHOUT_EFFECT = (
    *("corpus", "rows", "pattern", "limit", "metrics", "length_penalty", "unidirectional"),
    *("window", "stride", "beams", "max_tokens", "harness", "include"),
)
"""Options of other evaluations; values of the task are set as task.<key>=<value>."""


def is_override(typed: str) -> bool:
    """Return True for a value of the section task."""
    return typed.startswith("task.") and "=" in typed


def run(
    arguments: argparse.Namespace, *, declare: Callable[[argparse.ArgumentParser], None]
) -> int:
    """Measure the task and print a table.

    Args:
        arguments: Of ``glm-dist evaluate``.
        declare: Its ``add_arguments``.

    Returns:
        Exit status.

    Raises:
        GlmDistError: The run or an example cannot be used.
    """
    why = "has no effect on a task, whose values are set as task.<key>=<value>"
    refuse_given(arguments, WITHOUT_EFFECT, declare, why=why)
    _refuse_files(arguments.tasks)
    if arguments.json is not None:
        check_result(arguments.json)
    split = Split.test if arguments.split == "test" else Split.valid
    data = open_task(
        arguments.run,
        arguments.task or OWN,
        arguments.tasks,
        splits=(split,),
        batch_size=arguments.batch_size,
        tokenizer=arguments.tokenizer,
    )
    task = data.config.task
    if not data.records:
        raise ConfigError(
            f"task.data.{split.value} is not set, so there are no examples to measure.\n"
            f"  Set task.data.{split.value}=<file>, or choose the other --split.",
            key=f"task.data.{split.value}",
            value=None,
            fix=f"task.data.{split.value}=<file>",
        )
    check_libraries(task.used_metrics)
    model = load_for(arguments)
    outcome: Outcome = import_module("glm_dist.tasks.measure").measure_run(model, data, split)
    if model.groups.rank == 0:
        results = import_module("glm_dist.tasks.results")
        file = str(getattr(task.data, split.value))
        results.show_outcomes(
            [(f"{task.name} {split.value}", f"step {model.step}", outcome)],
            table_console(),
        )
        if arguments.json is not None:
            text = results.outcome_as_json(
                outcome,
                run=str(arguments.run),
                task=task.name,
                step=model.step,
                split=split,
                file=file,
            )
            write_result(Path(arguments.json), text)
    return 0


def _refuse_files(typed: Sequence[str]) -> None:
    for each in typed:
        if not is_override(each):
            raise ConfigError(
                f"{each} is a file of examples, and --task has its own.\n"
                f"  Set task.data.valid={each}, or leave --task out.",
                key="--task",
                value=each,
                fix=f"task.data.valid={each}",
            )
