"""Results of a finetuned run: results.json and predictions.jsonl in its folder, and a table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glm_dist.checkpoint.manifest import Json
from glm_dist.files import write_atomically
from glm_dist.json_text import json_text
from glm_dist.tasks.outcome import Outcome, Prediction
from glm_dist.tasks.readers.records import Split

RESULTS_FILE = "results.json"
VERSION = 1

PREDICTIONS = {Split.valid: "predictions.jsonl", Split.test: "predictions_test.jsonl"}
"""Files of the predictions of the chosen checkpoint."""


@dataclass(frozen=True)
class Measurement:
    """Outcomes of one checkpoint."""

    step: int
    outcomes: Mapping[Split, Outcome]


@dataclass(frozen=True)
class Results:
    """Outcomes of a run."""

    run: str
    task: str
    seed: int
    select: str
    """Metric that chooses the best checkpoint."""
    larger_is_better: bool
    files: Mapping[Split, str]
    """Files of the examples."""
    last: Measurement
    """Of the last step."""
    best: Measurement | None = None
    """Of the step that was best on validation; None: no checkpoint of it was kept."""

    @property
    def chosen(self) -> Measurement:
        """The measurement that stands for the run."""
        return self.best or self.last

    @property
    def is_optimistic(self) -> bool:
        """True if the examples of validation chose the checkpoint that is measured on them."""
        return self.best is not None


def write_results(results: Results, folder: Path) -> None:
    """Write results and predictions into a run folder, the results last.

    Args:
        results: Of the run.
        folder: The run's folder.
    """
    for split, name in PREDICTIONS.items():
        outcome = results.chosen.outcomes.get(split)
        if outcome is None:
            (folder / name).unlink(missing_ok=True)  # of an earlier start, of other weights
            continue
        lines = [_line(n, each) for n, each in enumerate(outcome.predictions)]
        write_atomically(folder / name, "".join(lines))
    content = _as_json(results)
    write_atomically(folder / RESULTS_FILE, json_text(content, indent=2) + "\n")


def read_predictions(file: Path) -> list[Prediction]:
    """Read the predictions that ``write_results`` wrote.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
    """
    with file.open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    try:
        return [
            Prediction(
                line["label"],
                line["prediction"],
                values={name: float(value) for name, value in line.get("values", {}).items()},
            )
            for line in lines
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"a line is no prediction: {error!r}") from error


def show_results(results: Results, console: Console) -> None:
    """Print a table of the chosen checkpoint's metrics.

    Args:
        results: Of the run.
        console: Where it goes.
    """
    is_same = results.best is not None and results.best.step == results.last.step
    measured = {"best": results.best, "last": results.last}
    if is_same:
        measured = {"best, last": results.best}
    rows = [
        (f"{results.task} {split.value}", f"{name}, step {each.step}", outcome)
        for name, each in measured.items()
        if each is not None
        for split, outcome in each.outcomes.items()
    ]
    show_outcomes(rows, console)
    if results.is_optimistic:
        text = (
            f"The best checkpoint was chosen by {results.select} on {Split.valid.value}, so its "
            "values there are optimistic"
        )
        has_test = Split.test in results.chosen.outcomes
        console.print(text + ("." if has_test else "; task.data.test names other examples."))


def show_outcomes(rows: Sequence[tuple[str, str, Outcome]], console: Console) -> None:
    """Print a table of metrics.

    Args:
        rows: Name of the examples, name of the checkpoint, and outcome.
        console: Where it goes.
    """
    table = Table("task", "examples", "checkpoint", "metric", "value", "± of 95 %")
    for task, checkpoint, outcome in rows:
        for metric, mean in outcome.metrics.items():
            half = mean.half_width
            table.add_row(
                escape(task),
                f"{len(outcome.predictions):,}",
                checkpoint,
                metric,
                f"{mean.value:.4f}",
                "" if math.isnan(half) else f"{half:.4f}",
            )
    console.print(table)


def outcome_as_json(
    outcome: Outcome, *, run: str, task: str, step: int, split: Split, file: str
) -> str:
    """Write the outcome of one checkpoint on one split, with its predictions, as JSON.

    Args:
        outcome: The outcome.
        run: Folder of the run.
        task: Name of the task.
        step: Of the checkpoint.
        split: The split.
        file: Its file of examples.
    """
    content: dict[str, Json] = {
        "version": VERSION,
        "run": run,
        "task": task,
        "step": step,
        split.value: _outcome(outcome, file),
        "predictions": [_prediction(n, each) for n, each in enumerate(outcome.predictions)],
    }
    return json_text(content, indent=2) + "\n"


def _as_json(results: Results) -> dict[str, Json]:
    def split_of(measurement: Measurement, split: Split, *, is_chosen: bool) -> Json:
        outcome = measurement.outcomes.get(split)
        if outcome is None:
            return None
        found = _outcome(outcome, results.files[split])
        return found | ({"predictions": PREDICTIONS[split]} if is_chosen else {})

    chosen = results.chosen
    return {
        "version": VERSION,
        "run": results.run,
        "task": results.task,
        "seed": results.seed,
        "step": chosen.step,
        "chosen_by": "last" if results.best is None else "best",
        "select": results.select,
        "higher_is_better": results.larger_is_better,
        "is_optimistic": results.is_optimistic,
        "valid": split_of(chosen, Split.valid, is_chosen=True),
        "test": split_of(chosen, Split.test, is_chosen=True),
        "last": {
            "step": results.last.step,
            "valid": split_of(results.last, Split.valid, is_chosen=False),
            "test": split_of(results.last, Split.test, is_chosen=False),
        },
    }


def _outcome(outcome: Outcome, file: str) -> dict[str, Json]:
    return {
        "file": file,
        "examples": len(outcome.predictions),
        "loss": outcome.loss,
        "metrics": {
            name: {"value": mean.value, "low": mean.low, "high": mean.high}
            for name, mean in outcome.metrics.items()
        },
    }


def _line(index: int, prediction: Prediction) -> str:
    return json_text(_prediction(index, prediction)) + "\n"


def _prediction(index: int, prediction: Prediction) -> dict[str, Json]:
    label = prediction.label
    return {
        "index": index,
        "label": list(label) if isinstance(label, list) else label,
        "prediction": prediction.prediction,
        "scores": list(prediction.scores),
        "values": dict(prediction.values),
    }
