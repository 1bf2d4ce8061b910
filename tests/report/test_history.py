"""Columns of a run's records: repeated steps, unfinished lines, and what thinning must keep."""

import json
from pathlib import Path

import numpy as np
import pytest

from glm_dist.report.history import Column, read_history, thin
from tests.report.recorded import BEGIN, record, started, two_attempts, write_lines


def test_the_later_attempt_replaces_the_steps_that_it_repeats(tmp_path: Path) -> None:
    history = read_history(write_lines(tmp_path, two_attempts()))

    loss = history.columns["train/loss"]
    assert loss.steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert loss.values.tolist() == pytest.approx([4.9, 4.8, 4.7, 4.6, 3.5, 3.4, 3.3, 3.2])
    assert (loss.times - BEGIN).tolist() == [11, 12, 13, 14, 105, 106, 107, 108]
    assert history.columns["valid/loss_span"].steps.tolist() == [4]
    assert [event["event"] for event in history.events] == ["started", "checkpoint", "started"]


def test_steps_before_a_rewind_do_not_count(tmp_path: Path) -> None:
    lines = [
        *(started(1, 0, 0), *(record(1, step, step, 5.0) for step in range(1, 5))),
        {"step": 2, "event": "rewound", "from_step": 4, "attempt": 1, "time": BEGIN + 6},
        record(1, 3, 7, 2.0),
    ]
    loss = read_history(write_lines(tmp_path, lines)).columns["train/loss"]
    assert (loss.steps.tolist(), loss.values.tolist()) == ([1, 2, 3], [5.0, 5.0, 2.0])


@pytest.mark.parametrize("torn", ['{"step": 3, "attempt": 1, "tr', '{"step": 3, "attempt": 1}'])
def test_a_line_that_is_being_written_and_damaged_ones_are_left_out(
    tmp_path: Path, torn: str
) -> None:
    run = write_lines(tmp_path, [started(1, 0, 0), record(1, 1, 1, 5.0)])
    whole = (run / "metrics.jsonl").stat().st_size
    damaged = [
        "{", "[]", "null", '{"step": "x", "attempt": 1}', '{"step": 2}', "\x00\xff",
        '{"step": 1e400, "attempt": 1}', '{"step": -1, "attempt": 1}',
    ]  # fmt: skip
    better = record(1, 2, 2, 4.0) | {"phase_seconds": {"step": "x"}, "note": "text", "bad": "NaN"}
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("\n".join([*damaged, json.dumps(better), torn]))
    history = read_history(run)
    assert history.columns["train/loss"].steps.tolist() == [1, 2]
    assert np.isnan(history.columns["bad"].values).tolist() == [True]
    assert "note" not in history.columns
    assert history.end > whole
    rest = (run / "metrics.jsonl").read_bytes()[history.end :]
    assert rest == torn.encode()


def test_a_run_without_records_has_an_empty_history(tmp_path: Path) -> None:
    history = read_history(tmp_path)
    assert (history.columns, history.events, history.attempts, history.end) == ({}, [], [], 0)


def test_thinning_keeps_extremes_ends_and_the_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=100_000)
    values[31_415], values[70_000] = 50.0, -40.0
    values[500:520] = np.nan
    steps = np.arange(1, 100_001)
    kept = thin(Column(steps, steps + BEGIN, values), 2000)

    assert 1500 < len(kept) <= 2000
    assert {1, 31_416, 70_001, 100_000} <= set(kept.steps.tolist())
    # Each record that stays is one of those that were there.
    assert np.array_equal(kept.values, values[kept.steps - 1], equal_nan=True)
    # Means of equal parts average to the mean of all; extremes would not. 50 of 100 are one part.
    assert kept.means is not None
    parts = kept.means[::2]
    assert float(np.nanmean(parts)) == pytest.approx(float(np.nanmean(values)), abs=0.005)
    begin = np.linspace(0, 100_000, 1000, dtype=np.int64)
    assert kept.means[1] == pytest.approx(values[: begin[1]].mean())


def test_few_records_stay_as_they_are() -> None:
    steps = np.arange(100)
    column = Column(steps, steps + BEGIN, steps * 1.0)
    assert thin(column, 100) is column
