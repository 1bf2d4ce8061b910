"""Results that finished runs left in their folders.

Finetuning writes ``results.json`` and the answer to every example in ``predictions.jsonl``.
Pretraining leaves its last validation in ``metrics.jsonl``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_dist.checkpoint.folders import list_steps
from glm_dist.config.load import load_config_file
from glm_dist.config.schema import RunConfig, TaskKind
from glm_dist.config.task import LOSS as TASK_LOSS
from glm_dist.errors import ConfigError, DataError
from glm_dist.files import exists
from glm_dist.observe.endings import FINISHED_FILE, STOPPED_FILE
from glm_dist.observe.metrics import VALID_LOSS
from glm_dist.observe.metrics_file import METRICS_FILE, last_validation
from glm_dist.observe.run_folder import CHECKPOINTS, CONFIG_FILE
from glm_dist.tasks.intervals import Interval
from glm_dist.tasks.results import RESULTS_FILE, read_predictions

LOSS = "validation loss"
"""Metric of pretraining: the mean over its objectives, in nats per predicted token."""


@dataclass(frozen=True)
class Answers:
    """Answers to all examples of one file, in its order."""

    labels: list[Any]
    predictions: list[Any]
    values: dict[str, list[float]]
    """Numbers of the examples, by metrics that are means of them."""


@dataclass(frozen=True)
class Measured:
    """Metrics of one run on one file."""

    metrics: dict[str, Interval]
    """By name; the ends are NaN where the run measured no interval."""
    num_examples: int = 0
    answers: Path | None = None
    """File of predictions."""


@dataclass(frozen=True)
class Outcome:
    """Results of one finished run."""

    select: str
    """Metric that chose its checkpoint."""
    higher_is_better: bool
    valid: Measured
    test: Measured | None = None


def has_begun(config: RunConfig) -> bool:
    """Return True if there is something that was trained with a run's saved configuration."""
    folder = config.run_dir
    return exists(folder / FINISHED_FILE) or bool(list_steps(folder / CHECKPOINTS))


def is_finished(config: RunConfig, *, needs_results: bool) -> bool:
    """Return True if a run has reached its last step, or stopped early by its own rule.

    Args:
        config: The run as it would be started now.
        needs_results: A run without ``results.json`` is not finished.

    Raises:
        ConfigError: The saved configuration cannot be read.
    """
    folder = config.run_dir
    if not exists(folder / FINISHED_FILE) or not exists(folder / CONFIG_FILE):
        return False
    if needs_results and not exists(folder / RESULTS_FILE):
        return False
    return load_config_file(folder / CONFIG_FILE).run.steps >= config.run.steps


def stopped_status(folder: Path) -> int | None:
    """Return the exit status that a stopped run noted, which launchers hide; None if it did not."""
    try:
        return int(json.loads((folder / STOPPED_FILE).read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_outcome(folder: Path, *, has_results: bool) -> Outcome:
    """Read the results of a finished run.

    Args:
        folder: The run folder.
        has_results: Read ``results.json``; else the last validation in ``metrics.jsonl``.

    Raises:
        DataError: They are missing or damaged.
    """
    file = folder / (RESULTS_FILE if has_results else METRICS_FILE)
    try:
        return _finetuned(file) if has_results else _pretrained(file)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(file, error) from error


def read_answers(file: Path) -> Answers:
    """Read ``predictions.jsonl``.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        found = read_predictions(file)
        names = found[0].values if found else {}
        return Answers(
            labels=[each.label for each in found],
            predictions=[each.prediction for each in found],
            values={name: [each.values[name] for each in found] for name in names},
        )
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(file, error) from error


def _finetuned(file: Path) -> Outcome:
    content = json.loads(file.read_text(encoding="utf-8"))
    test, select = content.get("test"), str(content["select"])
    valid = _measured(content["valid"], file.parent)
    if select not in valid.metrics:
        raise ValueError(f"no {select}")
    return Outcome(
        select=select,
        higher_is_better=bool(content["higher_is_better"]),
        valid=valid,
        test=_measured(test, file.parent) if test else None,
    )


def _measured(content: Mapping[str, Any], folder: Path) -> Measured:
    metrics = {
        str(name): Interval(*(_number(each.get(end)) for end in ("value", "low", "high")))
        for name, each in content["metrics"].items()
    }
    # It may have chosen the checkpoint (task.select=loss).
    metrics[TASK_LOSS] = Interval.point(_number(content.get("loss")))
    predictions = content.get("predictions")
    return Measured(
        metrics=metrics,
        num_examples=int(content["examples"]),
        answers=folder / predictions if predictions else None,
    )


def _number(value: object) -> float:
    return math.nan if value is None else float(str(value))


def _pretrained(file: Path) -> Outcome:
    last = last_validation(file)
    losses = [
        value
        for name, value in last.items()
        if name.startswith(VALID_LOSS) and "/" not in name.removeprefix(VALID_LOSS)
    ]
    if not losses:
        raise ValueError("no validation")
    found = {LOSS: sum(losses) / len(losses), **last}
    metrics = {name: Interval(value, math.nan, math.nan) for name, value in found.items()}
    return Outcome(select=LOSS, higher_is_better=False, valid=Measured(metrics))


def _damaged(file: Path, error: Exception) -> DataError:
    reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error!r})"
    return DataError(
        f"{file} {reason}, so the sweep cannot count this run.\n"
        f"  Remove {file.parent / FINISHED_FILE}, and the same sweep goes on with the run.",
        key=str(file),
        value=str(error),
        fix=f"rm {file.parent / FINISHED_FILE}",
    )


def check_metric(name: str, outcome: Outcome) -> None:
    """Refuse a metric that a run did not measure.

    Raises:
        ConfigError: It did not.
    """
    if name not in outcome.valid.metrics:
        raise _no_metric(name, [*outcome.valid.metrics], best=outcome.select)


def check_will_measure(name: str, config: RunConfig) -> None:
    """Refuse a metric that a run will not measure.

    Args:
        name: Of the metric.
        config: Of the run.

    Raises:
        ConfigError: It will not.
    """
    task = config.task
    if task.kind is not TaskKind.none:
        known = [*task.used_metrics, TASK_LOSS]
        if name not in known:
            raise _no_metric(name, known, best=task.selecting_metric)
    elif name != LOSS and not name.startswith(VALID_LOSS):
        raise _no_metric(name, [LOSS, f"{VALID_LOSS}<objective>"], best=LOSS)


def _no_metric(name: str, known: Sequence[str], *, best: str) -> ConfigError:
    return ConfigError(
        f"--metric {name} is not measured; there are {', '.join(known)}.\n  Name one of them.",
        key="--metric",
        value=name,
        fix=f"--metric {best}",
    )


def check_validates(config: RunConfig) -> None:
    """Refuse a pretraining run that would leave nothing to compare.

    Raises:
        ConfigError: It does not validate.
    """
    if config.evaluation.interval == 0 or config.evaluation.rows_per_objective == 0:
        interval = config.evaluation.interval
        key = "evaluation.rows_per_objective" if interval else "evaluation.interval"
        raise ConfigError(
            f"{key}=0 turns validation off, but a sweep compares the losses of the last one.\n"
            f"  Set {key} above 0.",
            key=key,
            value=0,
            fix=f"{key}=<n>",
        )
