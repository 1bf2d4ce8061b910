"""A task on a run that is not being trained: its own after finetuning, or any other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glm_dist.config.finetuning import with_values
from glm_dist.config.load import load_config, load_config_file
from glm_dist.config.patterns import fields_of, parse_pattern
from glm_dist.config.schema import TaskConfig, TaskKind
from glm_dist.data.tokenizer.stored import load_stored_tokenizer
from glm_dist.errors import ConfigError
from glm_dist.observe.run_folder import CONFIG_FILE
from glm_dist.tasks.readers.records import Record, Split
from glm_dist.tasks.task_data import TaskData, read_task_data

OWN = "own"
"""Name of the task that a run was finetuned on."""


def has_own_task(run: Path) -> bool:
    """Return True if a run was finetuned on a task."""
    return load_config_file(run / CONFIG_FILE).task.kind is not TaskKind.none


def open_task(
    run: Path,
    task: str,
    overrides: Sequence[str],
    *,
    splits: Sequence[Split],
    batch_size: int,
    tokenizer: Path | None = None,
) -> TaskData:
    """Read the examples of a task as a run's model takes them.

    Args:
        run: Folder of the run.
        task: Option of conf/task, file with the section task, or ``OWN``.
        overrides: Values of the section task, as typed.
        splits: Splits to read; none to read examples from elsewhere.
        batch_size: Examples side by side.
        tokenizer: The tokenizer's files; None: the run's own.

    Raises:
        ConfigError: The task is unknown, the run has none of its own, or no head for its classes.
        DataError: The tokenizer or an example cannot be used.
    """
    saved = load_config_file(run / CONFIG_FILE)
    if task == OWN:
        config = with_values(saved, overrides)
        if config.task.kind is TaskKind.none:
            raise ConfigError(
                f"{run} was not finetuned, so it has no task of its own.\n"
                "  Name one: --task <option of conf/task> or --task <file>.yaml.",
                key="--task",
                value=OWN,
                fix="--task <file>.yaml",
            )
    else:
        typed = [f"run.init_from='{run}'", f"run.name={saved.run.name}", f"task={task}"]
        config = load_config([*typed, *overrides])
    if config.task.kind is TaskKind.classify:
        _check_head(run, found=saved.model.num_classes, needed=config.model.num_classes)
    opened = load_stored_tokenizer(config.tokenizer, run, checkpoint={}, path=tokenizer)
    config = replace(config, batch=replace(config.batch, micro_batch_size=batch_size))
    data = read_task_data(config, opened, splits=splits)
    return sized(data) if data.records else data


def _check_head(run: Path, *, found: int, needed: int) -> None:
    """Refuse a run without a head for the classes of a task.

    Raises:
        ConfigError: It has none, or one of another size.
    """
    if found == 0:
        raise ConfigError(
            f"task.kind=classify needs a classification head, and {run} has none.\n"
            "  Finetune the run on the task first, or set task.kind=cloze.",
            key="task.kind",
            value="classify",
            fix="task.kind=cloze",
        )
    if found != needed:
        raise ConfigError(
            f"The task has {needed} classes, and the classification head of {run} has {found}.\n"
            "  Finetune the run on the task first, or set task.kind=cloze.",
            key="model.num_classes",
            value=found,
            fix="task.kind=cloze",
        )


def with_records(data: TaskData, records: Sequence[Record]) -> TaskData:
    """Return a task with examples that need no right answers, as its test split.

    Args:
        data: The task.
        records: Examples. [n]

    Raises:
        DataError: One lacks a field of the pattern.
    """
    dummy = _dummy_answers(data.config.task)
    found = [replace(record, fields={**dummy, **record.fields}) for record in records]
    count = data.prompts.num_questions(found)
    return sized(replace(data, records={Split.test: found}, rows_per_example=count))


def sized(data: TaskData) -> TaskData:
    """Return a task whose rows are as long as its longest example."""
    config = data.config
    batch = replace(config.batch, row_length=data.longest_row())
    return replace(data, config=replace(config, batch=batch))


def _dummy_answers(task: TaskConfig) -> dict[str, Any]:
    """Return right answers for examples that have none; no score depends on them."""
    if task.kind in (TaskKind.seq2seq, TaskKind.infill):
        return {each.name: "-" for each in fields_of(parse_pattern(task.target))}
    return {task.data.label: 0 if task.choices_field else next(iter(task.prompt_answers))}
