"""The metrics file survives crashes, and later attempts overrule earlier ones."""

import json
import math
from pathlib import Path

import pytest

from glm_dist.errors import DataError
from glm_dist.observe.metrics_file import encode, final_records, read_records, repair_last_line

LINE = b'{"step": 1, "attempt": 1, "train/loss": 2.5}\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (LINE, LINE),
        (LINE + b'{"step": 2, "att', LINE),
        (LINE + LINE[:-1], LINE + LINE),
        (LINE + b"12", LINE),
        (b'{"st', b""),
        (LINE + b"x" * 200_000, LINE),
    ],
    ids=["empty", "whole", "half", "no line break", "a number", "only half", "long half"],
)
def test_the_last_line_is_whole_after_mending(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(before)
    repair_last_line(path)
    assert path.read_bytes() == after


def test_mending_a_missing_file_does_not_create_it(tmp_path: Path) -> None:
    repair_last_line(tmp_path / "metrics.jsonl")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_numbers_json_does_not_know_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5}
    path.write_bytes(encode({"step": 1, "attempt": 1, **values}))
    json.loads(path.read_text(), parse_constant=pytest.fail)  # strict readers accept the line
    (record,) = read_records(path)
    assert math.isnan(record["a"])
    assert (record["b"], record["c"], record["d"]) == (math.inf, -math.inf, 1.5)


def test_reading_leaves_out_half_a_last_line_but_names_any_other_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINE + b'{"step"')
    assert [record["step"] for record in read_records(path)] == [1]
    path.write_bytes(b"not json\n" + LINE)
    with pytest.raises(DataError, match=r"Line 1 of .*metrics\.jsonl is not .*: not json"):
        read_records(path)


def test_each_step_is_final_once_after_two_rewinds() -> None:
    def attempt(number: int, first: int, steps: list[int]) -> list[dict[str, object]]:
        start = {"step": first, "event": "started", "attempt": number}
        return [start, *({"step": s, "attempt": number} for s in steps)]

    records = [
        *attempt(1, 0, [2, 4, 6, 8, 10]),
        *attempt(2, 8, [9, 10, 11]),  # resumed at 8: the first 10 does not hold
        *attempt(3, 5, [6, 7]),  # resumed at 5: nothing beyond 5 of the others holds
    ]
    kept = [(r["step"], r["attempt"]) for r in final_records(records) if "event" not in r]
    assert kept == [(2, 1), (4, 1), (6, 3), (7, 3)]


def test_steps_before_a_rewind_within_an_attempt_are_not_final() -> None:
    records = [
        {"step": 0, "event": "started", "attempt": 1},
        *({"step": step, "attempt": 1, "loss": float(step)} for step in (2, 3, 4)),
        {"step": 2, "event": "rewound", "attempt": 1},
        *({"step": step, "attempt": 1, "loss": 10.0 * step} for step in (3, 4, 5)),
    ]
    kept = [(r["step"], r["loss"]) for r in final_records(records) if "event" not in r]
    assert kept == [(2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
