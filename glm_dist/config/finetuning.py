"""Values that a task brings along: its experiment, its file, the model of the run it begins with.

``load.py`` calls these functions while it composes a configuration.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from glm_dist import files
from glm_dist.config.explain import explain_composition
from glm_dist.config.overrides import checked_overrides, parse_override, value_text
from glm_dist.config.schema import RunConfig, TaskConfig, TaskKind
from glm_dist.config.task import head_outputs
from glm_dist.config.text_values import check_values_in_file
from glm_dist.errors import ConfigError

EXPERIMENT = "finetune"
"""Experiment of a task that is chosen without one, and beginning of the names of its variants."""

INHERITED = ("model", "tokenizer", "corruption")
"""Sections taken from the run that ``run.init_from`` names, unless their group is chosen."""

NO_TASK = "none"

_SUFFIXES = (".yaml", ".yml")


def take_task_file(overrides: Sequence[Override]) -> tuple[list[Override], Path | None]:
    """Separate ``task=<file>.yaml`` from the options of conf/task.

    Args:
        overrides: As typed; the last choice of a task counts.

    Returns:
        The overrides without a file, and the file.
    """
    kept, file = [], None
    for override in overrides:
        if override.key_or_group != "task":
            kept.append(override)
            continue
        value = None if override.is_delete() else override.value()
        is_file = isinstance(value, str) and value.endswith(_SUFFIXES)
        file = Path(str(value)).expanduser() if is_file else None
        if not is_file:
            kept.append(override)
    return kept, file


def with_experiment(
    options: tuple[str, ...], overrides: Sequence[Override], file: Path | None
) -> tuple[str, ...]:
    """Add the experiment of tasks, if there is a task and no experiment was chosen.

    Args:
        options: Chosen options, as ``group=option``.
        overrides: As typed.
        file: File of the task, if it has one.
    """
    chosen = dict(option.split("=", 1) for option in options)
    has_task = file is not None or chosen.get("task", NO_TASK) != NO_TASK
    is_chosen = any(each.key_or_group == "experiment" for each in overrides)
    return (*options, f"experiment={EXPERIMENT}") if has_task and not is_chosen else options


def add_task(composed: DictConfig, options: Sequence[str], file: Path | None) -> None:
    """Give the task its name and, from a file of its own, its values.

    Args:
        composed: The whole configuration, changed in place.
        options: Chosen options, as ``group=option``.
        file: File of the task; None: it is an option of conf/task.

    Raises:
        ConfigError: The file is missing, or is no section of a task.
    """
    if file is not None:
        composed.task = _read(file)
        composed.task.name = composed.task.name or file.stem
        return
    chosen = dict(option.split("=", 1) for option in options)
    if not composed.task.name and "task" in chosen and chosen["task"] != NO_TASK:
        composed.task.name = chosen["task"]


def inherit(
    composed: DictConfig,
    *,
    options: Sequence[str],
    read: Callable[[Path], RunConfig],
) -> None:
    """Take the model of a task, and what belongs to it, from the run in ``run.init_from``.

    Args:
        composed: The whole configuration, changed in place; values are set already.
        options: Chosen options, as ``group=option``: their sections stay.
        read: Reads the configuration of a run.

    Raises:
        ConfigError: The task has no kind, no run is named, or its configuration cannot be read.
    """
    if composed.task.kind is TaskKind.none:
        if composed.task.name:
            raise _no_kind(str(composed.task.name))
        return
    chosen = dict(option.split("=", 1) for option in options)
    origin = OmegaConf.select(composed, "run.init_from")
    if not origin and str(chosen.get("experiment")).startswith(EXPERIMENT):
        raise no_origin(str(composed.task.name))
    if origin:
        folder = run_folder(Path(str(origin)).expanduser())
        config = read(folder / "config.yaml")
        _take_sections(composed, config, folder, keeps=chosen)
        if chosen.get("experiment") == EXPERIMENT and "precision" not in chosen:
            composed.precision = OmegaConf.structured(config.precision)
    composed.model.num_classes = head_outputs(composed.task)


def no_origin(task: str) -> ConfigError:
    """Build the error for a task without a run that it begins with."""
    return ConfigError(
        f"task={task} finetunes the model of a run, and run.init_from names none.\n"
        "  Set run.init_from=runs/<run>: a run folder, one of its checkpoints, or what glm-dist"
        " convert has imported. With run.init_with=architecture as well, the weights are drawn.",
        key="run.init_from",
        value=None,
        fix="run.init_from=runs/<run>",
    )


def with_values(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a configuration with other values, unchecked beyond their ranges.

    Args:
        config: Complete.
        overrides: Values, as typed.

    Raises:
        ConfigError: A key or value cannot be read.
    """
    parsed = [parse_override(text) for text in overrides]
    _, values = checked_overrides(parsed, {})
    composed = OmegaConf.structured(config)
    try:
        for each in values:
            OmegaConf.update(composed, each.key_or_group, each.value(), merge=True)
        return cast(RunConfig, OmegaConf.to_object(composed))
    except (OmegaConfBaseException, ValueError) as error:
        typed = {each.key_or_group: value_text(each) for each in values}
        raise explain_composition(error, typed=typed, source="command line") from error


def run_folder(origin: Path) -> Path:
    """Return the folder of a run by its own path or that of one of its checkpoints.

    Args:
        origin: Value of ``run.init_from``.
    """
    is_checkpoint = origin.parent.name == "checkpoints"
    return origin.parent.parent if is_checkpoint else origin


def _take_sections(
    composed: DictConfig, config: RunConfig, folder: Path, *, keeps: Collection[str]
) -> None:
    stored = folder / "tokenizer"
    if files.is_dir(stored):  # the original may have moved since
        config = replace(config, tokenizer=replace(config.tokenizer, path=str(stored)))
    for section in INHERITED:
        if section not in keeps:
            composed[section] = OmegaConf.structured(getattr(config, section))


def _read(file: Path) -> DictConfig:
    if not files.is_file(file):
        raise ConfigError(
            f"task={file} is no file.\n"
            "  Name a YAML file with the keys of the section task, or an option of conf/task.",
            key="task",
            value=str(file),
            fix="task=<file>.yaml",
        )
    try:
        check_values_in_file(file, group="task")
        loaded = OmegaConf.load(file)
        if not isinstance(loaded, DictConfig):
            raise ConfigError(
                f"{file} holds no keys.\n"
                "  Write the keys of the section task, such as kind: cloze.",
                key="task",
                value=str(file),
                fix="kind: cloze",
            )
        section = OmegaConf.create({"task": OmegaConf.structured(TaskConfig)})
        merged = cast(DictConfig, OmegaConf.merge(section, {"task": loaded}))
        return cast(DictConfig, merged.task)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, OSError) as error:
        raise explain_composition(error, typed={}, source=str(file)) from error


def _no_kind(task: str) -> ConfigError:
    kinds = ", ".join(kind.name for kind in TaskKind if kind is not TaskKind.none)
    return ConfigError(
        f"task={task} has no kind, so it describes no task.\n"
        f"  Write for example `kind: cloze` into its file; the kinds are {kinds}.",
        key="task.kind",
        value=None,
        fix="task.kind=cloze",
    )
