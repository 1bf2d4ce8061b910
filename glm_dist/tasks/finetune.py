"""Configuration of a finetuning: what is typed, and what the examples decide.

The examples decide how many steps the epochs have and how long the rows are. So a configuration is
composed twice: first to find the examples, then with their numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from glm_dist.config.finetuning import no_origin
from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig, TaskKind
from glm_dist.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from glm_dist.errors import ConfigError
from glm_dist.generate.prompt_checks import check_writes
from glm_dist.tasks.metrics import check_libraries
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.task_data import TaskData, read_task_data
from glm_dist.train.preflight import DataFacts, read_corpora

COUNTED = {
    "task.epoch_steps": "evaluation.interval",
    "task.steps": "task.epochs or run.steps",
    "task.row_tokens": "batch.row_length",
}
"""Numbers that options of conf/ refer to, and what a user sets instead."""


@dataclass(frozen=True)
class Finetuning:
    """A complete configuration with the examples of its task."""

    config: RunConfig
    data: TaskData | None
    """None in pretraining."""

    def facts(self, config: RunConfig, tokenizer: Tokenizer) -> DataFacts:
        """Return what the files of training data say; see ``preflight.ReadData``."""
        if self.data is None:
            return read_corpora(config, tokenizer)
        return DataFacts(self.data.fingerprint())


class Load(Protocol):
    """Form of ``load_config``."""

    def __call__(self, overrides: Sequence[str], *, config_dir: Path | None) -> RunConfig:
        """Compose a configuration."""
        ...


def configure(
    overrides: Sequence[str], *, config_dir: Path | None = None, load: Load = load_config
) -> Finetuning:
    """Compose a configuration, with the numbers of its examples if it has a task.

    Args:
        overrides: As typed.
        config_dir: Folder of the groups; conf/ of the source tree if None.
        load: Composes it, and checks as much as the caller wants.

    Raises:
        ConfigError: See ``load_config``; or the task lacks files of examples.
        DataError: The tokenizer or an example cannot be used.
    """
    config = load(overrides, config_dir=config_dir)
    return complete(config, overrides, config_dir=config_dir, load=load)


def complete(
    config: RunConfig,
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    known: TaskData | None = None,
    load: Load = load_config,
) -> Finetuning:
    """Add the numbers of its examples to a configuration that has a task.

    Args:
        config: As composed from the overrides.
        overrides: As for ``configure``.
        config_dir: As for ``configure``.
        known: Examples of another complete configuration. They are read again only if this one
            makes other rows of them.
        load: As for ``configure``.

    Raises:
        ConfigError: As for ``configure``.
        DataError: As for ``configure``.
    """
    _refuse_counted(overrides)
    if config.task.kind is TaskKind.none:
        return Finetuning(config, None)
    _check_needs(config, overrides)
    check_libraries(config.task.used_metrics)
    if known is not None and not _serves(known, config):
        known = None
    data = known or read_task_data(config, load_tokenizer(config.tokenizer))
    per_epoch = len(data.records[Split.train]) / config.batch.global_batch_size
    counted = {
        "task.epoch_steps": math.ceil(per_epoch),
        "task.steps": max(1, math.ceil(config.task.epochs * per_epoch)),
        "task.row_tokens": known.config.task.row_tokens if known else data.longest_row(),
    }
    numbers = [f"{key}={counted[key]}" for key in COUNTED]
    config = load([*overrides, *numbers], config_dir=config_dir)
    return Finetuning(config, replace(data, config=config))


def _serves(known: TaskData, config: RunConfig) -> bool:
    """Return True if examples that were read before give the rows of another configuration."""
    before = known.config
    free: dict[str, Any] = {key.removeprefix("task."): 16 for key in COUNTED} | {"epochs": 1}
    has_own_draws = config.task.kind is TaskKind.infill and before.run.seed != config.run.seed
    return not has_own_draws and all(
        (
            replace(before.task, **free) == replace(config.task, **free),
            before.model == config.model,
            before.tokenizer == config.tokenizer,
            before.corruption == config.corruption,
        )
    )


def examples_of(config: RunConfig) -> TaskData | None:
    """Read the examples that a run was finetuned on; None for one that was pretrained.

    Args:
        config: Complete, as the run saved it.

    Raises:
        DataError: The tokenizer or an example cannot be used.
    """
    if config.task.kind is TaskKind.none:
        return None
    return read_task_data(config, load_tokenizer(config.tokenizer))


def _keys(overrides: Sequence[str]) -> set[str]:
    return {text.partition("=")[0] for text in overrides}


def _refuse_counted(overrides: Sequence[str]) -> None:
    """Refuse numbers that the examples decide.

    Raises:
        ConfigError: One of them is set.
    """
    for key in sorted(_keys(overrides) & COUNTED.keys()):
        raise ConfigError(
            f"{key} is counted from the examples, so it cannot be set.\n"
            f"  Set {COUNTED[key]} instead.",
            key=key,
            value=None,
            fix=f"{COUNTED[key].partition(' ')[0]}=<n>",
        )


def _check_needs(config: RunConfig, overrides: Sequence[str]) -> None:
    """Refuse a task without a run to begin with, or without examples.

    Raises:
        ConfigError: Something is missing, or is given twice, or the run cannot write answers.
    """
    task, name = config.task, config.task.name
    if config.run.init_from is None:
        raise no_origin(name)
    if task.kind in (TaskKind.seq2seq, TaskKind.infill):
        check_writes(config.corruption, run=config.run.init_from)
    for key, file in (("train", task.data.train), ("valid", task.data.valid)):
        if file is None:
            source = task.data.source
            where = f" The files are usually available from {source}." if source else ""
            raise ConfigError(
                f"task.data.{key} is not set, and task={name} needs examples to"
                f" {'train on' if key == 'train' else 'choose the best checkpoint by'}.\n"
                f"  Set task.data.{key}=<file>.{where}",
                key=f"task.data.{key}",
                value=None,
                fix=f"task.data.{key}=<file>",
            )
    if {"run.steps", "task.epochs"} <= _keys(overrides):
        raise ConfigError(
            "run.steps and task.epochs are both set, and each decides how long the run is.\n"
            "  Leave one of them out.",
            key="task.epochs",
            value=task.epochs,
            fix="leave run.steps out",
        )
