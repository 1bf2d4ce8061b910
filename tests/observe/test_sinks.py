"""Records survive crashes, rewinds, full disks and a W&B that does not work."""

import io
import json
import logging
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig
from glm_dist.observe.phases import PhaseClock
from glm_dist.observe.sinks import (
    Details,
    JsonlSink,
    SinkGroup,
    open_sinks,
)


def config(runs: Path, mode: str = "off") -> RunConfig:
    made = load_config(
        ["experiment=tiny", "run.name=a", f"paths.runs={runs}", f"observe.wandb_mode={mode}"]
    )
    made.run_dir.mkdir(parents=True, exist_ok=True)
    return made


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def jsonl(path: Path, attempt: int = 1, first_step: int = 0) -> JsonlSink:
    return JsonlSink(path, attempt=attempt, first_step=first_step, clock=lambda: 1.5)


def test_every_line_has_step_attempt_and_time(tmp_path: Path) -> None:
    sink = jsonl(tmp_path / "metrics.jsonl")
    sink.write(10, {"train/loss": 2.5})
    sink.event(10, "checkpoint", {"path": "x"})
    sink.close()
    assert records(tmp_path / "metrics.jsonl") == [
        {"step": 0, "event": "started", "attempt": 1, "time": 1.5},
        {"step": 10, "train/loss": 2.5, "attempt": 1, "time": 1.5},
        {"step": 10, "event": "checkpoint", "path": "x", "attempt": 1, "time": 1.5},
        {"step": 10, "event": "ended", "attempt": 1, "time": 1.5},
    ]


def test_a_record_is_on_disk_before_the_next_one(tmp_path: Path) -> None:
    sink = jsonl(tmp_path / "metrics.jsonl")
    sink.write(10, {"train/loss": 2.5})
    assert records(tmp_path / "metrics.jsonl")[-1]["train/loss"] == 2.5


def test_the_next_attempt_appends_after_mending_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    jsonl(path).write(10, {"train/loss": 2.5})
    with path.open("a") as stream:
        stream.write('{"step": 20, "train/lo')
    jsonl(path, attempt=2, first_step=10).write(20, {"train/loss": 2.25})
    assert [(r["step"], r["attempt"]) for r in records(path)] == [(0, 1), (10, 1), (10, 2), (20, 2)]


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("file_size_limit")
def test_records_of_a_full_disk_are_written_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = jsonl(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))  # half a record fits
    sink.write(10, {"train/loss": 2.5})
    sink.write(20, {"train/loss": 2.5})
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sink.write(30, {"train/loss": 2.5})
    assert [r["step"] for r in records(path)] == [0, 10, 20, 30]
    levels = [r.levelname for r in caplog.records]
    assert levels == ["ERROR", "WARNING"]
    assert "delayed=2 lost=0" in caplog.text


@pytest.mark.usefixtures("file_size_limit")
def test_records_beyond_the_bound_are_counted_as_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = jsonl(path)
    size = path.stat().st_size  # of one record, nearly
    monkeypatch.setattr("glm_dist.observe.sinks.MAX_HELD_BYTES", 2 * size)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    for step in (10, 20, 30, 40):
        sink.write(step, {"train/loss": 2.5})
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sink.write(50, {"train/loss": 2.5})
    assert [r["step"] for r in records(path)] == [0, 40, 50]
    assert "delayed=1 lost=3" in caplog.text


def test_a_folder_that_disappears_does_not_end_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = jsonl(tmp_path / "gone" / "metrics.jsonl")
    sink.write(10, {"train/loss": 2.5})
    assert len(caplog.records) == 1
    assert "No such file" in caplog.text


class Recorder:
    """A sink that stores what it receives."""

    def __init__(self) -> None:
        self.received: list[object] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.received.append((step, dict(values)))

    def event(self, step: int, kind: str, details: Details) -> None:
        self.received.append((step, kind, dict(details)))

    def close(self) -> None:
        self.received.append("closed")


def test_a_group_passes_records_to_every_sink_and_may_be_empty() -> None:
    first, second = Recorder(), Recorder()
    for group in (SinkGroup([first, second]), SinkGroup()):
        group.write(1, {"train/loss": 2.0})
        group.event(1, "checkpoint", {"path": "x"})
        group.close()
    assert first.received == [(1, {"train/loss": 2.0}), (1, "checkpoint", {"path": "x"}), "closed"]
    assert second.received == first.received


def test_without_wandb_a_run_has_file_and_console_and_wandb_is_not_imported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    made = config(tmp_path)
    sinks = open_sinks(
        made,
        attempt=1,
        first_step=0,
        console=Console(file=io.StringIO()),
        environ={},
        phases=PhaseClock(),
    )
    sinks.write(1, {"train/loss": 2.0})
    sinks.close()
    assert records(tmp_path / "a" / "metrics.jsonl")[-2]["train/loss"] == 2.0
    assert "loss  2.0000" in caplog.text
