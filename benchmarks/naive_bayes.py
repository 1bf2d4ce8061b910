"""Accuracy on a task of choices without a neural network: multinomial naive Bayes on bags of words.

A floor for finetuned models: who stays below it has learned less than which words go with which
answer. Words are runs of letters and digits in lower case, and single punctuation marks; counts
start at 1 (Laplace). Classes are the texts of the right choices in the training file; an answer is
the likeliest of the example's own choices. Words that no training example has do not count.
"""

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_dist.tasks.intervals import Interval, mean_over_examples

WORD = re.compile(r"\w+|[^\w\s]")
NO_TEXT = ("id", "source")
"""Fields that tell where an example is from."""


@dataclass(frozen=True)
class Example:
    """One example of a task of choices."""

    words: list[str]
    choices: list[str]
    answer: str
    """Text of the right choice."""


class NaiveBayes:
    """Logarithms of the probabilities of classes, and of words in them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        """Count the classes and words of training examples."""
        self._classes = Counter(example.answer for example in examples)
        self._num_examples = len(examples)
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in self._classes}
        for example in examples:
            self._counts[example.answer].update(example.words)
        self._words = {word for counts in self._counts.values() for word in counts}
        self._totals = {
            name: math.log(counts.total() + len(self._words))
            for name, counts in self._counts.items()
        }

    def majority(self, choices: Sequence[str]) -> str:
        """Return the choice that most training examples have; the first of several."""
        return max(choices, key=lambda choice: self._classes[choice])

    def answer(self, words: Iterable[str], choices: Sequence[str]) -> str:
        """Return the likeliest choice. One that no training example has comes last."""
        known = [word for word in words if word in self._words]
        return max(choices, key=lambda choice: self._log_probability(known, choice))

    def _log_probability(self, words: Sequence[str], name: str) -> float:
        if name not in self._classes:
            return -math.inf
        counts, total = self._counts[name], self._totals[name]
        prior = math.log(self._classes[name] / self._num_examples)
        return prior + sum(math.log(counts[word] + 1) - total for word in words)


def read(file: Path, fields: Sequence[str]) -> list[Example]:
    """Read JSON lines.

    Args:
        file: Examples with ``choices`` and ``label``, the index of the right one.
        fields: Fields that hold text; empty: all that do.
    """
    with file.open(encoding="utf-8") as stream:
        return [_example(json.loads(line), fields) for line in stream]


def _example(record: dict[str, Any], fields: Sequence[str]) -> Example:
    names = fields or [name for name in record if name not in NO_TEXT]
    texts = [record[name] for name in names if isinstance(record[name], str)]
    choices = record["choices"]
    return Example(WORD.findall(" ".join(texts).lower()), choices, choices[record["label"]])


def accuracy(answers: Sequence[str], examples: Sequence[Example]) -> Interval:
    """Share of right answers, with its 95 % interval over the examples."""
    pairs = zip(answers, examples, strict=True)
    return mean_over_examples([float(guess == example.answer) for guess, example in pairs])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each task."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive_bayes", description=__doc__)
    parser.add_argument(
        "tasks", nargs="+", type=Path, help="folders with train.jsonl and valid.jsonl"
    )
    parser.add_argument("--fields", nargs="+", default=[], help="fields that hold text")
    options = parser.parse_args(arguments)
    sys.stdout.write("| task | train | valid | majority | naive Bayes | 95 % interval |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- | --- |\n")
    for task in options.tasks:
        train, valid = (
            read(task / f"{split}.jsonl", options.fields) for split in ("train", "valid")
        )
        model = NaiveBayes(train)
        majority = accuracy([model.majority(each.choices) for each in valid], valid)
        found = accuracy([model.answer(each.words, each.choices) for each in valid], valid)
        sys.stdout.write(
            f"| {task.name} | {len(train):,} | {len(valid):,} | {majority.value:.3f} |"
            f" {found.value:.3f} | {found.low:.3f} to {found.high:.3f} |\n"
        )


if __name__ == "__main__":
    main()
