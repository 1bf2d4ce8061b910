"""Metrics of chosen answers, against arithmetic by hand."""

import math

import pytest

from glm_dist.tasks.choice_metrics import Chosen, measure
from glm_dist.tasks.intervals import Interval
from glm_dist.tasks.outcome import choice_outcome, text_outcome
from glm_dist.tasks.task_prompts import TaskExample


def chosen(predictions: list[int], labels: list[int]) -> list[Chosen]:
    return [Chosen(p, label) for p, label in zip(predictions, labels, strict=True)]


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "expected"),
    [
        pytest.param("accuracy", [0, 0, 1, 1], [0, 1, 1, 1], 3 / 4, id="accuracy"),
        # F1 of the classes: 2/4, 4/5 and, never right, 0
        pytest.param("macro_f1", [0, 0, 1, 1, 2], [0, 1, 1, 1, 0], (0.5 + 0.8) / 3, id="macro F1"),
        pytest.param("binary_f1", [0, 0, 1, 1, 0], [0, 1, 1, 1, 0], 2 * 2 / 5, id="binary F1"),
        # 2 true and 1 false positives, 2 true and 0 false negatives: (2·2 − 1·0) / √(3·2·3·2)
        pytest.param("matthews", [1, 1, 0, 0, 1], [1, 0, 0, 0, 1], 4 / 6, id="Matthews"),
        pytest.param("matthews", [1, 1], [1, 0], 0.0, id="Matthews of one class"),
    ],
)
def test_metric_of_choices(
    name: str, predictions: list[int], labels: list[int], expected: float
) -> None:
    found = measure(name, chosen(predictions, labels))
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high


def test_question_is_right_if_all_its_answers_are() -> None:
    examples = [
        Chosen(1, 1, group="a"),
        Chosen(0, 1, group="a"),
        Chosen(0, 0, group="b"),
        Chosen(1, 1, group="b"),
    ]
    assert measure("question_em", examples).value == 0.5


def test_best_of_several_right_answers_counts_without_accents_and_articles() -> None:
    example = Chosen(2, 0, "The Café.", references=["Paris", "cafe de Flore"])
    assert measure("em", [example]).value == 0.0
    # one shared word of 1 and 3: 2·1/(1 + 3)
    assert measure("f1", [example]).value == pytest.approx(0.5)
    assert measure("em", [Chosen(2, 0, "The Café.", references=["cafe"])]).value == 1.0
    assert measure("accuracy", [Chosen(1, 0, "b", references=["a", "b"])]).value == 1.0


def test_example_whose_answer_is_wrong_counts_if_another_one_is_chosen() -> None:
    assert not Chosen(0, 0, counts_if_right=False).is_right
    assert Chosen(1, 0, counts_if_right=False).is_right


def test_scores_of_missing_answers_are_never_chosen() -> None:
    example = TaskExample("x:1", [], label=1, choices=("a", "b"), references=("b",))
    found = choice_outcome([example], [[-3.0, -2.0, -1.0]], ["accuracy"], loss=0.5)
    assert found.metrics["accuracy"].value == 1.0
    assert found.predictions[0].scores == [-3.0, -2.0]


def test_written_answers_are_compared_with_the_best_reference() -> None:
    examples = [
        TaskExample("x:1", [], references=("red", "blue")),
        TaskExample("x:2", [], references=("red",), is_right=False),
    ]
    found = text_outcome(examples, ["Blue", "green"], ["em"], loss=0.5)
    assert [each.values["em"] for each in found.predictions] == [1.0, 1.0]


def test_half_width_is_unknown_without_an_interval() -> None:
    assert Interval(0.5, 0.4, 0.7).half_width == pytest.approx(0.15)
    assert math.isnan(Interval.point(0.5).half_width)


def test_scores_that_are_no_numbers_are_never_right() -> None:
    names = ["accuracy", "macro_f1", "binary_f1", "matthews"]
    examples = [TaskExample("x:1", [], label=n % 2, choices=("a", "b")) for n in range(4)]
    nothing = [math.nan, math.nan]
    found = choice_outcome(examples, [nothing] * 4, names, loss=math.nan)
    assert [mean.value for mean in found.metrics.values()] == [0, 0, 0, 0]
    assert [each.prediction for each in found.predictions] == [-1] * 4
    # The right answers of the first two, and none of the others: F1 of both classes is 2/3.
    half = [[1.0, 0.0], [0.0, 1.0], nothing, nothing]
    found = choice_outcome(examples, half, names, loss=math.nan)
    assert found.metrics["accuracy"].value == 0.5
    assert found.metrics["binary_f1"].value == pytest.approx(2 / 3)
    assert found.metrics["macro_f1"].value == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
