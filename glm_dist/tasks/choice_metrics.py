"""Metrics of examples with several answers or classes, one of which was chosen.

Letters: n examples, c classes, r resamples.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_dist.tasks.intervals import Interval, bootstrap, mean_over_examples
from glm_dist.tasks.metrics import exact_match, word_f1

Counts = NDArray[np.float64]
"""Examples by predicted and right class. [r, c, c]"""


NOTHING = -1
"""Prediction where no answer was chosen, because the scores are not numbers."""


@dataclass(frozen=True)
class Chosen:
    """One example with the answer that a model chose."""

    prediction: int
    """Index of the chosen answer, or ``NOTHING``."""
    label: int
    """Index of the right one; -1: unknown."""
    text: str = ""
    """The chosen answer."""
    references: Sequence[str] = ()
    """All right answers as texts; empty: there are none but the label's."""
    group: str = ""
    """Name of what the example belongs to, such as a question with several answers."""

    counts_if_right: bool = True
    """False: it counts where another answer than the right one is chosen."""

    @property
    def is_right(self) -> bool:
        """True for the right answer, or one of them, or where these are wrong for another one."""
        is_among = self.prediction == self.label or self.text in self.references
        return self.prediction != NOTHING and is_among == self.counts_if_right


PER_EXAMPLE: dict[str, Callable[[Chosen], float]] = {
    "accuracy": lambda example: float(example.is_right),
    "em": lambda example: _best(exact_match, example),
    "f1": lambda example: _best(word_f1, example),
}
"""Metrics that are means over examples."""


def macro_f1(counts: Counts) -> Counts:
    """Average the F1 of all classes that occur. Shapes: [r, c, c] to [r]."""
    right = counts.diagonal(axis1=1, axis2=2)
    found, wanted = counts.sum(axis=2), counts.sum(axis=1)
    occurs = (found + wanted) > 0
    f1 = np.divide(2 * right, found + wanted, out=np.zeros_like(right), where=occurs)
    average: Counts = f1.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)
    return average


def binary_f1(counts: Counts) -> Counts:
    """Compute the F1 of class 1. Shapes: [r, c, c] to [r]."""
    right = counts[:, 1, 1]
    both = counts[:, 1, :].sum(axis=1) + counts[:, :, 1].sum(axis=1)
    f1: Counts = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
    return f1


def matthews(counts: Counts) -> Counts:
    """Compute Matthews' correlation; 0 where one class is alone. Shapes: [r, c, c] to [r]."""
    found, wanted = counts.sum(axis=2), counts.sum(axis=1)
    total = counts.sum(axis=(1, 2))
    right = counts.diagonal(axis1=1, axis2=2).sum(axis=1)
    above = right * total - (found * wanted).sum(axis=1)
    spread = (total**2 - (found**2).sum(axis=1)) * (total**2 - (wanted**2).sum(axis=1))
    root = np.sqrt(spread)
    correlation: Counts = np.divide(above, root, out=np.zeros_like(above), where=spread > 0)
    return correlation


OF_COUNTS: dict[str, Callable[[Counts], Counts]] = {
    "macro_f1": macro_f1,
    "binary_f1": binary_f1,
    "matthews": matthews,
}
"""Metrics of a confusion matrix."""


def measure(name: str, examples: Sequence[Chosen]) -> Interval:
    """Compute a metric with its interval.

    Args:
        name: A key of ``PER_EXAMPLE`` or ``OF_COUNTS``, or question_em.
        examples: At least one. [n]
    """
    if name in PER_EXAMPLE:
        return mean_over_examples([PER_EXAMPLE[name](example) for example in examples])
    if name == "question_em":
        return mean_over_examples(question_em(examples))
    return bootstrap(
        of_resamples(name, [e.prediction for e in examples], [e.label for e in examples]),
        len(examples),
    )


def of_resamples(
    name: str, predictions: Sequence[int], labels: Sequence[int]
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """Return a metric of a confusion matrix as a function of resampled examples, [r, n] to [r].

    Args:
        name: A key of ``OF_COUNTS``.
        predictions: Index of each example's chosen answer, or ``NOTHING``. [n]
        labels: Index of the right one; -1, unknown, counts as 0. [n]
    """
    nothing = max(2, max(predictions) + 1, max(labels) + 1)  # a class that is never right
    size = nothing + (NOTHING in predictions)
    found = np.where(np.asarray(predictions) == NOTHING, nothing, predictions)
    cells = found * size + np.maximum(labels, 0)
    statistic = OF_COUNTS[name]

    def of(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        counts = np.stack([np.bincount(cells[row], minlength=size * size) for row in chosen])
        return statistic(counts.reshape(-1, size, size).astype(np.float64))

    return of


def question_em(examples: Sequence[Chosen]) -> list[float]:
    """Return 1 for each group of examples that are all right, in the order of their first ones."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for example in examples:
        groups[example.group].append(example.is_right)
    return [float(all(right)) for right in groups.values()]


def _best(compare: Callable[[str, str], float], example: Chosen) -> float:
    answer = _without_accents(example.text)
    return max(
        (compare(answer, _without_accents(each)) for each in example.references),
        default=float(example.is_right),
    )


def _without_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))
