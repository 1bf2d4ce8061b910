"""Settings compared, from files as finetuned runs leave them; numbers are worked out by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_dist.errors import ConfigError, DataError
from glm_dist.sweep.comparison import Group, Run, check_baseline, compare
from glm_dist.sweep.outcomes import read_answers, read_outcome
from glm_dist.sweep.points import Point, expand
from glm_dist.sweep.report import as_markdown, write_report
from glm_dist.tasks.intervals import over_seeds


def _split(
    folder: Path, name: str, right: Sequence[float], *, predictions: list[int] | None = None
) -> dict[str, Any]:
    """Write the answers to examples of one file, and return their part of results.json."""
    guesses = predictions or [1 - int(value) for value in right]
    lines = [
        {"index": n, "label": 0, "prediction": guess, "values": {"accuracy": value}}
        for n, (guess, value) in enumerate(zip(guesses, right, strict=True))
    ]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    accuracy = {"value": float(np.mean(right)), "low": 0.1, "high": 0.9}
    return {
        "examples": len(right),
        "predictions": name,
        "metrics": {"accuracy": accuracy, "macro_f1": {"value": 0.5, "low": None, "high": None}},
    }


def _finetuned(
    folder: Path, point: Point, right: Sequence[float], *, test: Sequence[float] | None = None
) -> Run:
    """A finished run that got some examples right."""
    run = folder / point.name
    run.mkdir()
    results = {
        "select": "accuracy",
        "higher_is_better": True,
        "valid": _split(run, "predictions.jsonl", right),
        "test": None if test is None else _split(run, "predictions_test.jsonl", test),
    }
    (run / "results.json").write_text(json.dumps(results))
    outcome = read_outcome(run, has_results=True)
    return Run(point, int(point.settings["run.seed"]), "finished", outcome)


def _chosen_by_loss(folder: Path, point: Point, loss: float) -> Run:
    """A finished run whose checkpoint was chosen by the loss (task.select=loss)."""
    run = _finetuned(folder, point, [1.0, 0.0])
    file = folder / point.name / "results.json"
    results = json.loads(file.read_text()) | {"select": "loss", "higher_is_better": False}
    results["valid"]["loss"] = loss
    file.write_text(json.dumps(results))
    return replace(run, outcome=read_outcome(file.parent, has_results=True))


def _points(*overrides: str) -> list[Point]:
    groups = {"task": ["cb", "rte"]}
    return expand(["run.name=s", *overrides, "run.seed=1,2,3"], groups)


def _only(groups: list[Group]) -> Group:
    (group,) = groups
    return group


def test_settings_are_averaged_over_seeds_and_compared_on_the_same_examples(tmp_path: Path) -> None:
    # Of 100 examples the first setting gets 50 right, the second 10 more, whatever the seed.
    right = {"1e-5": [1.0] * 50 + [0.0] * 50, "2e-5": [1.0] * 60 + [0.0] * 40}
    points = _points("optimizer.learning_rate=1e-5,2e-5")
    runs = [_finetuned(tmp_path, p, right[p.setting[0][1]]) for p in points]
    first, second = _only(compare(runs)).rows
    assert (first.is_baseline, first.is_best, first.difference) == (True, False, None)
    assert (second.is_baseline, second.is_best, second.pairs) == (False, True, 3)
    assert second.value == over_seeds([0.6, 0.6, 0.6])
    assert second.difference is not None
    # Pairs: 10 differences of 1 and 90 of 0.
    half = 1.96 * math.sqrt(0.1 * 0.9 / 100)
    assert second.difference.value == pytest.approx(0.1)
    ends = (second.difference.low, second.difference.high)
    assert ends == pytest.approx((0.1 - half, 0.1 + half), abs=0.012)
    assert second.difference.is_separated


def test_difference_is_measured_on_the_test_file_if_there_is_one(tmp_path: Path) -> None:
    points = _points("optimizer.learning_rate=1e-5,2e-5")
    runs = [
        _finetuned(tmp_path, p, [0.0] * n + [1.0] * (3 - n), test=[1.0] * n + [0.0] * (9 - n))
        for p, n in zip(points, (1, 1, 1, 2, 2, 2), strict=True)
    ]
    group = _only(compare(runs))
    assert (group.num_examples, group.num_test_examples) == (3, 9)
    first, second = group.rows
    assert first.is_best  # 2 of 3 on validation data
    assert second.test is not None
    assert second.test.value == pytest.approx(2 / 9)
    assert second.difference is not None
    assert second.difference.value == pytest.approx(1 / 9)


def test_only_common_seeds_are_paired_and_missing_runs_named(tmp_path: Path) -> None:
    points = _points("optimizer.learning_rate=1e-5,2e-5")
    runs = [_finetuned(tmp_path, p, [1.0, 0.0]) for p in points[:4]]
    runs += [Run(p, 0, "failed", None) for p in points[4:]]
    group = _only(compare(runs, baseline=["optimizer.learning_rate=2e-5"]))
    first, second = group.rows
    assert (first.num_finished, first.pairs) == (3, 1)
    assert second.is_baseline
    assert second.value is not None
    assert (second.value.low, second.value.high) == (0.1, 0.9)  # of its only run
    text = as_markdown([group], command="glm-dist sweep")
    assert "| 1 of 3 |" in text
    assert "Not counted: s-learning_rate_2e-5-seed_3 (failed)." in text


def test_metrics_that_are_no_means_are_recomputed_or_compared_over_seeds(tmp_path: Path) -> None:
    points = _points("optimizer.learning_rate=1e-5,2e-5")
    runs = [
        _finetuned(tmp_path, p, [1.0] * n + [0.0] * (10 - n))
        for p, n in zip(points, (5, 5, 5, 10, 10, 10), strict=True)
    ]
    _, second = _only(compare(runs, metric="macro_f1")).rows
    assert second.difference is not None
    # All labels are 0. 5 of 10 right: F1 of class 0 is 2/3, of class 1 0. All right: 1.
    assert second.difference.value == pytest.approx(1 - 1 / 3)
    assert second.difference.is_separated
    for run in runs:
        (tmp_path / run.point.name / "predictions.jsonl").write_text("")
    _, second = _only(compare(runs)).rows
    assert second.difference == over_seeds([0.5, 0.5, 0.5])


def test_each_task_has_a_table_of_its_own(tmp_path: Path) -> None:
    points = _points("task=rte,cb", "optimizer.learning_rate=1e-5,2e-5")
    runs = [_finetuned(tmp_path, p, [1.0] * (2 + len(p.settings["task"]))) for p in points]
    groups = compare(runs)
    assert [group.title for group in groups] == [(("task", "rte"),), (("task", "cb"),)]
    assert [group.num_examples for group in groups] == [5, 4]
    assert [row.is_baseline for group in groups for row in group.rows] == [True, False] * 2
    write_report(tmp_path / "s.sweep", groups, command="glm-dist sweep")
    text = (tmp_path / "s.sweep/sweep.md").read_text()
    assert "## task=cb, 4 validation examples (± 0.4000 for a single run)" in text
    stored = json.loads((tmp_path / "s.sweep/sweep.json").read_text())
    assert stored["groups"][1]["rows"][1]["settings"] == {"optimizer.learning_rate": "2e-5"}


def test_baseline_names_one_setting_of_each_table() -> None:
    points = _points("task=rte,cb", "optimizer.learning_rate=1e-5,2e-5", "task.epochs=1,2")
    check_baseline(points, [])
    check_baseline(points, ["optimizer.learning_rate=1e-5", "task.epochs=2"])
    for wrong, count in (
        (["task=rte", "optimizer.learning_rate=1e-5", "task.epochs=2"], "no setting with task=cb"),
        (["task.epochs=2"], "2 settings with task=rte"),
    ):
        with pytest.raises(ConfigError, match=count) as caught:
            check_baseline(points, wrong)
        fix = "--baseline optimizer.learning_rate=1e-5 --baseline task.epochs=1"
        assert caught.value.fix == fix


def test_damaged_results_name_their_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_outcome(tmp_path, has_results=True)
    assert caught.value.key == str(tmp_path / "results.json")
    (tmp_path / "results.json").write_text('{"select": "accuracy"}')
    with pytest.raises(DataError, match="is damaged"):
        read_outcome(tmp_path, has_results=True)
    (tmp_path / "predictions.jsonl").write_text('{"index": 0}\n')
    with pytest.raises(DataError, match="is damaged"):
        read_answers(tmp_path / "predictions.jsonl")


def test_unknown_metric_is_refused(tmp_path: Path) -> None:
    (point, *_) = _points()
    with pytest.raises(ConfigError, match="there are accuracy, macro_f1") as caught:
        compare([_finetuned(tmp_path, point, [1.0])], metric="bleu")
    assert caught.value.key == "--metric"


def test_a_loss_that_chose_the_checkpoints_is_compared(tmp_path: Path) -> None:
    points = _points("optimizer.learning_rate=1,2")
    losses = [0.5, 0.7, 0.6, 0.4, 0.6, 0.5]
    runs = [_chosen_by_loss(tmp_path, p, n) for p, n in zip(points, losses, strict=True)]
    group = _only(compare(runs))
    assert (group.metric, group.higher_is_better) == ("loss", False)
    first, second = group.rows
    assert second.is_best
    assert first.value is not None
    assert first.value.value == pytest.approx(0.6)
    assert second.difference is not None
    assert second.difference.value == pytest.approx(-0.1)  # the same for each seed
    assert second.difference.is_separated
