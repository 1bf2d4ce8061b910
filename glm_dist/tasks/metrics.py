"""Metrics of written answers, each a number for one example or all."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

from glm_dist.errors import ConfigError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and repeated spaces, as SQuAD compares answers."""
    plain = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return " ".join(plain.split())


def exact_match(answer: str, target: str) -> float:
    """Return 1 if two answers are the same after ``normalize``."""
    return float(normalize(answer) == normalize(target))


def word_f1(answer: str, target: str) -> float:
    """Compute the F1 of the words that two answers share after ``normalize``."""
    words, wanted = normalize(answer).split(), normalize(target).split()
    if not words or not wanted:
        return float(words == wanted)
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted))


def rouge(answer: str, target: str, *, kind: str) -> float:
    """Compute the F-measure of a ROUGE with stemming (package rouge-score).

    Args:
        answer: Text.
        target: Right text.
        kind: rouge1, rouge2 or rougeL.
    """
    return float(_rouge_scorer(kind).score(target, answer)[kind].fmeasure)


@lru_cache(maxsize=3)
def _rouge_scorer(kind: str) -> Any:
    return _library("rouge_score.rouge_scorer", "rouge-score", kind).RougeScorer([kind], True)


def bleu(answers: Sequence[str], targets: Sequence[Sequence[str]]) -> float:
    """Compute the corpus BLEU (package sacrebleu), 0 to 1.

    Args:
        answers: One for each example. [n]
        targets: Right answers of each example. [n]
    """
    library = _library("sacrebleu", "sacrebleu", "bleu")
    most = max(map(len, targets))
    references = [[each[k] if k < len(each) else None for each in targets] for k in range(most)]
    return float(library.corpus_bleu(list(answers), references).score) / 100


PER_ANSWER: dict[str, Callable[[str, str], float]] = {
    "em": exact_match,
    "f1": word_f1,
    "rouge_1": partial(rouge, kind="rouge1"),
    "rouge_2": partial(rouge, kind="rouge2"),
    "rouge_l": partial(rouge, kind="rougeL"),
}
"""Metrics of one answer and one target; with several targets the best counts."""


def check_libraries(names: Sequence[str]) -> None:
    """Refuse metrics whose package is not installed.

    Args:
        names: Metrics.

    Raises:
        ConfigError: One is not.
    """
    for name in names:
        if name.startswith("rouge"):
            _library("rouge_score.rouge_scorer", "rouge-score", name)
        if name == "bleu":
            _library("sacrebleu", "sacrebleu", name)


def _library(module: str, package: str, metric: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"The metric {metric} needs the package {package}, which is not installed.\n"
            '  Install it: pip install "glm-dist[tasks]", or leave it out of task.metrics.',
            key="task.metrics",
            value=metric,
            fix='pip install "glm-dist[tasks]"',
        ) from error
