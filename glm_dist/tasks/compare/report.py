"""Table of a comparison: accuracies, their differences, and what each objective has cost.

Differences are paired: the same examples, the same seeds. They are separated where their 95 %
interval lies on one side of zero; everything else is "not separated", which is no proof of
equality.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm_dist.config.compare import RANDOM
from glm_dist.config.load import load_config_file
from glm_dist.errors import DataError
from glm_dist.json_text import json_text
from glm_dist.observe.metrics import VALID_LOSS
from glm_dist.observe.metrics_file import METRICS_FILE, last_validation
from glm_dist.observe.run_folder import CONFIG_FILE
from glm_dist.tasks.compare.budget import Budget, count_budget
from glm_dist.tasks.compare.cost import read_cost
from glm_dist.tasks.compare.last_words import WordScores, read_scores
from glm_dist.tasks.compare.plan import LAST_WORDS_FILE, Comparison, Job
from glm_dist.tasks.intervals import Interval, paired_difference
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.results import PREDICTIONS, read_predictions

METRIC = "accuracy"

Values = NDArray[np.float64]
"""1 for a right answer, else 0, of each seed and example. [s, n]"""


@dataclass(frozen=True)
class Cell:
    """One choice of initial weights on one task."""

    first: str
    task: str
    accuracy: Interval
    differences: Mapping[str, Interval]
    """Paired differences to other initial weights, by their name."""


@dataclass(frozen=True)
class Pretrained:
    """One objective's pretraining."""

    objective: str
    budget: Budget
    seconds: float
    core_seconds: float
    losses: Mapping[str, float]
    """Last validation losses, by objective."""
    words: WordScores | None
    """Nats per last word; None: not measured."""


@dataclass(frozen=True)
class Report:
    """Outcome of a comparison."""

    reference: str
    """Initial weights that the others are compared with, besides random ones."""
    num_seeds: int
    num_examples: Mapping[str, int]
    """Examples of validation, by task."""
    cells: Sequence[Cell]
    pretrained: Sequence[Pretrained]
    finetuning_core_seconds: Mapping[str, float]
    """By initial weights."""

    def markdown(self) -> str:
        """Write the report as Markdown."""
        return (
            "\n".join([*_accuracies(self), "", *_budgets(self), "", *_words(self)]).rstrip() + "\n"
        )

    def as_json(self) -> str:
        """Write the report as JSON."""
        return json_text(asdict(self), indent=1) + "\n"


def make_report(comparison: Comparison) -> Report:
    """Read what the finished jobs of a comparison have written.

    Args:
        comparison: All its jobs are finished.

    Raises:
        DataError: A file of predictions is missing or does not match the others.
    """
    jobs = comparison.jobs()
    reference = comparison.firsts[0]
    cells, counts = [], {}
    for task in comparison.tasks:
        values = {
            first: _values([j for j in jobs if (j.task, j.first) == (task, first)])
            for first in comparison.firsts
        }
        counts[task] = values[reference].shape[1]
        for first, own in values.items():
            others = {
                other: _difference(own, values[other])
                for other in (RANDOM, reference)
                if other != first
            }
            cells.append(Cell(first, task, _mean(own), others))
    return Report(
        reference=reference,
        num_seeds=len(comparison.settings.seeds),
        num_examples=counts,
        cells=cells,
        pretrained=[_pretrained(job) for job in jobs if job.is_pretraining],
        finetuning_core_seconds={
            first: sum(
                read_cost(j.folder).core_seconds for j in jobs if j.task and j.first == first
            )
            for first in comparison.firsts
        },
    )


def _values(jobs: Sequence[Job]) -> Values:
    """Read which examples each seed got right [s, n]."""
    rows = []
    for job in jobs:
        file = job.folder / PREDICTIONS[Split.valid]
        try:
            rows.append([each.values[METRIC] for each in read_predictions(file)])
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(file, str(error)) from error
        if len(rows[-1]) != len(rows[0]):
            raise _unreadable(file, f"{len(rows[-1])} examples and not {len(rows[0])}")
    return np.array(rows)


def _unreadable(file: Path, problem: str) -> DataError:
    return DataError(
        f"{file} cannot be compared with the others ({problem}).\n"
        f"  Remove {file.parent} and start the comparison again; it does only what is missing.",
        key=str(file),
        value=problem,
        fix=f"rm -r {file.parent}",
    )


def _mean(values: Values) -> Interval:
    return paired_difference(lambda chosen: values[:, chosen].mean(axis=2).T, values.shape[1])


def _difference(values: Values, others: Values) -> Interval:
    return _mean(values - others)


def _pretrained(job: Job) -> Pretrained:
    last = last_validation(job.folder / METRICS_FILE)
    words = job.folder / LAST_WORDS_FILE
    cost = read_cost(job.folder)
    return Pretrained(
        objective=job.first,
        budget=count_budget(load_config_file(job.folder / CONFIG_FILE)),
        seconds=cost.seconds,
        core_seconds=cost.core_seconds,
        losses={
            name.removeprefix(VALID_LOSS): loss
            for name, loss in last.items()
            if name.startswith(VALID_LOSS)
        },
        words=read_scores(words) if words.exists() else None,
    )


def _accuracies(report: Report) -> Iterator[str]:
    seeds = f"{report.num_seeds} seed{'s' if report.num_seeds > 1 else ''}"
    yield f"| task (examples, {seeds}) | initial weights | accuracy | minus {RANDOM} |" + (
        f" minus {report.reference} |"
    )
    yield "| --- | --- | --- | --- | --- |"
    for cell in report.cells:
        differences = [
            _shown_difference(cell.differences[other]) if other in cell.differences else "–"
            for other in (RANDOM, report.reference)
        ]
        yield (
            f"| {cell.task} ({report.num_examples[cell.task]}) | {cell.first} |"
            f" {_shown(cell.accuracy)} | {differences[0]} | {differences[1]} |"
        )


def _budgets(report: Report) -> Iterator[str]:
    yield (
        "| objective | tokens computed | of text | predicted | core-seconds | finetuning |"
        " validation loss |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for each in report.pretrained:
        budget = each.budget
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in each.losses.items())
        yield (
            f"| {each.objective} | {budget.computed:,} | {budget.text:,} | {budget.predicted:,} |"
            f" {each.core_seconds:,.0f} |"
            f" {report.finetuning_core_seconds[each.objective]:,.0f} | {losses} |"
        )
    yield (f"| {RANDOM} | 0 | 0 | 0 | 0 | {report.finetuning_core_seconds[RANDOM]:,.0f} | |")


def _words(report: Report) -> Iterator[str]:
    if not any(each.words for each in report.pretrained):
        return
    yield "| objective | nats per last word | words | form |"
    yield "| --- | --- | --- | --- |"
    for each in report.pretrained:
        if each.words is not None:
            words = each.words
            shown = f"{words.nats:.3f} [{words.low:.3f}, {words.high:.3f}]"
            yield f"| {each.objective} | {shown} | {words.num_words} | {words.form} |"


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _shown_difference(interval: Interval) -> str:
    verdict = "separated" if interval.is_separated else "not separated"
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}] {verdict}"
