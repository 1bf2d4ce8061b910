"""Metrics and predictions of a model on the examples of a task."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from glm_dist.tasks.choice_metrics import NOTHING, PER_EXAMPLE, Chosen, measure
from glm_dist.tasks.intervals import Interval, mean_over_examples
from glm_dist.tasks.metrics import PER_ANSWER, bleu
from glm_dist.tasks.task_prompts import TaskExample


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one example."""

    label: int | list[str]
    """Index of the right answer, or the right texts."""
    prediction: int | str
    """Index of the chosen answer, or the written text."""
    scores: list[float] = field(default_factory=list)
    """Score of each answer; empty for written text."""
    values: dict[str, float] = field(default_factory=dict)
    """The example's number for each metric that is a mean over examples."""


@dataclass(frozen=True)
class Outcome:
    """Metrics and predictions."""

    metrics: dict[str, Interval]
    predictions: list[Prediction]
    """One for each example, in the order of the file."""
    loss: float = math.nan
    """Mean of the loss that training lowers, without dropout."""


def choice_outcome(
    examples: Sequence[TaskExample],
    scores: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    loss: float,
) -> Outcome:
    """Compare chosen answers with the right ones.

    Args:
        examples: At least one. [n]
        scores: Score of each answer; those beyond an example's own are ignored. [n, c]
        names: Metrics.
        loss: See ``Outcome``.
    """
    chosen, predictions = [], []
    for example, row in zip(examples, scores, strict=True):
        own = list(row[: len(example.choices)]) if example.choices else list(row)
        prediction = max(range(len(own)), key=own.__getitem__)
        if any(map(math.isnan, own)):
            prediction = NOTHING  # of a model that diverged; the first answer could be right
        text = example.choices[prediction] if example.choices and prediction >= 0 else ""
        each = Chosen(
            *(prediction, example.label, text, example.references, example.group),
            counts_if_right=example.is_right,
        )
        values = {name: PER_EXAMPLE[name](each) for name in names if name in PER_EXAMPLE}
        chosen.append(each)
        predictions.append(Prediction(example.label, prediction, own, values))
    return Outcome({name: measure(name, chosen) for name in names}, predictions, loss)


def text_outcome(
    examples: Sequence[TaskExample], answers: Sequence[str], names: Sequence[str], *, loss: float
) -> Outcome:
    """Compare written answers with the right ones; of several, the best counts.

    Args:
        examples: At least one, each with its right answers. [n]
        answers: What the model wrote. [n]
        names: Metrics.
        loss: See ``Outcome``.
    """
    values = [
        {
            name: _against_all(PER_ANSWER[name], answer, example)
            for name in names
            if name in PER_ANSWER
        }
        for example, answer in zip(examples, answers, strict=True)
    ]
    metrics = {
        name: mean_over_examples([each[name] for each in values])
        if name in PER_ANSWER
        else Interval.point(bleu(answers, [each.references for each in examples]))
        for name in names
    }
    predictions = [
        Prediction(list(example.references), answer, values=of_example)
        for example, answer, of_example in zip(examples, answers, values, strict=True)
    ]
    return Outcome(metrics, predictions, loss)


def _against_all(compare: Callable[[str, str], float], answer: str, example: TaskExample) -> float:
    best = max(compare(answer, each) for each in example.references)
    return best if example.is_right else 1 - best
