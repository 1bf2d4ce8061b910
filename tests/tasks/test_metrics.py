"""Metrics against values worked out by hand."""

import numpy as np
import pytest

from glm_dist.errors import ConfigError
from glm_dist.tasks import metrics
from glm_dist.tasks.intervals import mean_over_examples, ratio_over_examples
from glm_dist.tasks.metrics import bleu, exact_match, rouge, word_f1


def test_answers_are_compared_without_case_articles_and_punctuation() -> None:
    assert exact_match("The  cat!", "a cat") == 1.0
    assert exact_match("cats", "cat") == 0.0
    # 2 shared words of 3 and 4
    assert word_f1("big black cat", "Cat, black with spots") == pytest.approx(4 / 7)
    assert word_f1("", "the") == 1.0
    assert word_f1("", "cat") == 0.0


def test_intervals_cover_the_mean_as_often_as_they_promise() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        mean = mean_over_examples(rng.random(60).tolist())
        covered += mean.low <= 0.5 <= mean.high
    assert 180 <= covered <= 198
    ratio = ratio_over_examples([1.0, 9.0], [1.0, 3.0])
    assert (ratio.value, ratio.low, ratio.high) == (2.5, 1.0, 3.0)


def test_metrics_of_other_packages_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    metrics._rouge_scorer.cache_clear()
    monkeypatch.setattr(metrics, "import_module", missing)
    with pytest.raises(ConfigError, match="needs the package rouge-score"):
        rouge("a", "a", kind="rougeL")
    with pytest.raises(ConfigError, match="needs the package sacrebleu"):
        bleu(["a"], [["a"]])


def test_rouge_and_bleu_of_equal_texts_are_one() -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    text = "the cat sat on the mat today"
    assert rouge(text, text, kind="rougeL") == 1.0
    assert rouge("the cat", text, kind="rougeL") == pytest.approx(2 * 1 * (2 / 7) / (1 + 2 / 7))
    assert bleu([text], [[text, "another"]]) == pytest.approx(1.0)
