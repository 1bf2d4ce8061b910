"""Runs of every kind and age become the same plain data; whatever is no run is refused."""

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest

from glm_dist.cli.main import main
from glm_dist.errors import ConfigError
from glm_dist.report.run import Options, check_is_run, read_run
from tests.messages import Says
from tests.old_runs.restore import restore
from tests.report.recorded import BEGIN, two_attempts, write_lines, write_run

QUICK = Options(row=False)


def read(run: Path, options: Options = QUICK) -> dict[str, Any]:
    """Read a run, and check that JSON can hold it."""
    found = read_run(run, options)
    json.dumps(found, allow_nan=False)
    return cast("dict[str, Any]", found)


def column(run: dict[str, Any], name: str) -> dict[int, float]:
    """One metric by step."""
    (table,) = [table for table in run["tables"] if name in table["columns"]]
    return dict(zip(table["steps"], table["columns"][name], strict=True))


@pytest.mark.parametrize("name", ["spans", "mixed"])
def test_runs_of_version_1_are_read(tmp_path: Path, name: str) -> None:
    run = restore("v1", tmp_path) / name
    found = read(run, Options())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for metric in ("train/loss", "train/grad_norm", "valid/loss_span"):
        recorded = {line["step"]: line[metric] for line in lines if metric in line}
        if recorded:  # "mixed" was never validated
            assert column(found, metric) == pytest.approx(recorded, rel=1e-7)
    assert found["config"]["run.name"] == name
    assert found["attempts"][0]["launcher"] == "python"
    assert [event["kind"] for event in found["events"]] == [
        line["event"] for line in lines if "event" in line
    ]
    assert found["row"]["positions"][0] == 0
    (checkpoint,) = found["checkpoints"]
    # Of "mixed" only the manifest was kept.
    assert checkpoint["is_sound"] == (name == "spans")
    assert ("is missing" in checkpoint["verdict"]) == (name == "mixed")


def test_changed_bytes_of_a_checkpoint_are_found_by_hashing_only(tmp_path: Path) -> None:
    run = restore("v1", tmp_path) / "spans"
    file = run / "checkpoints/step_0000004/__0_0.distcp"
    content = bytearray(file.read_bytes())
    (sound,) = read(run, Options(verify=True, row=False))["checkpoints"]
    assert (sound["is_sound"], sound["verdict"]) == (True, "hashes as written")
    assert sound["bytes"] >= len(content)

    content[100] ^= 1
    file.write_bytes(content)
    assert read(run)["checkpoints"][0]["is_sound"]
    assert not read(run, Options(verify=True, row=False))["checkpoints"][0]["is_sound"]

    file.write_bytes(content[:-1])
    assert not read(run)["checkpoints"][0]["is_sound"]


def test_wall_time_is_split_by_attempt(tmp_path: Path) -> None:
    found = read(write_lines(tmp_path / "run", two_attempts()))
    first, second = found["goodput"]["attempts"]
    # Processes started at 5 and 95; the first was last seen at 16 with step 6, of which 4 remain.
    assert first["seconds"]["start_up"] == second["seconds"]["start_up"] == 5.0
    assert first["seconds"]["down"] == 95 - 16
    assert first["seconds"]["lost_steps"] == pytest.approx(16 - 14.8)
    assert sum(first["seconds"].values()) == pytest.approx(95 - 5, abs=0.01)
    assert found["gaps"] == [[BEGIN + 16, BEGIN + 95]]
    assert found["state"] == {"step": 8, "planned": None, "kind": "open"}


def test_what_is_missing_is_noted(tmp_path: Path) -> None:
    run = write_lines(tmp_path / "run", [])
    found = read(run, Options())
    assert found["tables"] == found["events"] == found["checkpoints"] == []
    assert (found["config"], found["row"], found["results"]) == ({}, None, None)
    (note,) = found["notes"]
    assert "config.yaml is missing" in note


def test_a_run_whose_corpora_are_elsewhere_has_no_row(tmp_path: Path) -> None:
    run = write_run(tmp_path, "moved", two_attempts())
    assert read(run, Options())["row"]["real"] == 96
    (tmp_path / "words.bin").unlink()
    found = read(run, Options())
    assert found["row"] is None
    assert "words.bin" in found["notes"][0]


def test_a_row_is_described_as_the_model_gets_it(tmp_path: Path) -> None:
    row = read(write_run(tmp_path, "rows", []), Options())["row"]
    (segment,) = row["segments"]
    middle = segment["prefix_length"]
    assert segment["begin"] == 0
    assert segment["length"] == row["real"] == len(row["positions"])
    assert row["positions"][:middle] == list(range(middle))
    assert not any(row["block_positions"][:middle])
    begin = middle
    for blank in segment["blanks"]:
        assert blank["begin"] == begin
        end = begin + blank["length"]
        assert row["positions"][begin:end] == [blank["position"]] * blank["length"]
        assert row["block_positions"][begin:end] == list(range(1, blank["length"] + 1))
        begin = end
    assert begin == row["real"]
    numbered = sorted(blank for _, blank in segment["part_a"] if blank is not None)
    assert numbered == [blank["number"] for blank in segment["blanks"]]


def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    lines = two_attempts()
    lines[1]["train/loss"] = math.inf
    run = write_lines(tmp_path, [{**line} for line in lines[:1]])
    with (run / "metrics.jsonl").open("a") as stream:
        for line in lines[1:]:
            stream.write(json.dumps(line).replace("Infinity", '"Infinity"') + "\n")
    assert column(read(run), "train/loss")[1] is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path, says: Says) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError) as raised:
        check_is_run(tmp_path)
    assert raised.value.key == "RUN"
    says(raised.value)
    with pytest.raises(ConfigError) as raised:
        check_is_run(tmp_path / "absent")
    says(raised.value)


def test_the_runs_of_a_comparison_are_named(tmp_path: Path, says: Says) -> None:
    for name in ("glm", "bert", "locks"):
        (tmp_path / name).mkdir()
    for name in ("glm", "bert"):
        (tmp_path / name / "config.yaml").touch()
    with pytest.raises(ConfigError) as raised:
        check_is_run(tmp_path)
    says(raised.value)


def test_options_without_effect_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(write_lines(tmp_path / "run", []))
    for wrong in (["--port", "0"], ["--live", "--output", "x.html"]):
        assert main(["report", run, *wrong]) == 2
        assert "has no effect" in capsys.readouterr().err


def test_values_that_an_attempt_changed_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path, "changed", two_attempts())
    now = (run / "config.yaml").read_text()
    for attempt, steps in ((1, 10), (3, 20)):
        (run / f"config.attempt_{attempt}.yaml").write_text(
            now.replace("  steps: 4\n", f"  steps: {steps}\n", 1)
        )
    assert read(run)["changes"] == [
        {"attempt": 2, "values": [["run.steps", "10", "20"]]},
        {"attempt": 4, "values": [["run.steps", "20", "4"]]},
    ]
