"""TensorBoard shows one history over attempts and rewinds, and training never waits for its files.

TensorBoard's own reader reads them.
"""

import logging
import resource
import sys
import threading
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig
from glm_dist.errors import ConfigError
from glm_dist.observe import tensorboard_sink
from glm_dist.observe.tensorboard_sink import TensorBoardSink
from glm_dist.train.preflight import check_files
from tests.messages import Says
from tests.observe.test_sinks import config

LOSS = "train/loss"


def record(made: RunConfig, *, attempt: int, first_step: int, losses: dict[int, float]) -> None:
    """Be an attempt of a run that records losses by step."""
    sink = TensorBoardSink(made, attempt=attempt, first_step=first_step)
    for step, loss in losses.items():
        sink.write(step, {LOSS: loss})
    sink.close()


def shown(made: RunConfig) -> list[tuple[int, float]]:
    """Step and loss of every point that TensorBoard draws."""
    read = EventAccumulator(str(made.run_dir / "tensorboard"))
    read.Reload()
    return [(point.step, point.value) for point in read.Scalars(LOSS)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    made = config(tmp_path)
    record(made, attempt=1, first_step=0, losses={0: 9.5, 1: 9.0, 2: 8.0, 3: 7.0, 4: 6.0})
    record(made, attempt=2, first_step=2, losses={3: 7.5, 4: 6.5})
    assert shown(made) == [(0, 9.5), (1, 9.0), (2, 8.0), (3, 7.5), (4, 6.5)]
    record(made, attempt=3, first_step=0, losses={0: 9.25, 1: 5.0})  # its checkpoints are lost
    assert shown(made) == [(0, 9.25), (1, 5.0)]


def test_steps_that_a_rewind_repeats_are_taken_back(tmp_path: Path) -> None:
    made = config(tmp_path)
    sink = TensorBoardSink(made, attempt=1, first_step=0)
    for step, loss in [(1, 9.0), (2, 8.0), (3, 70.0)]:
        sink.write(step, {LOSS: loss})
    sink.event(1, "rewound", {"from": 3})
    sink.write(2, {LOSS: 7.0})
    sink.close()
    assert shown(made) == [(1, 9.0), (2, 7.0)]


def test_the_configuration_is_a_text(tmp_path: Path) -> None:
    made = config(tmp_path)
    record(made, attempt=1, first_step=0, losses={})
    read = EventAccumulator(str(made.run_dir / "tensorboard"))
    read.Reload()
    (text,) = read.Tensors("config/text_summary")
    assert "    optimizer:\n      learning_rate: " in text.tensor_proto.string_val[0].decode()


def test_a_full_disk_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = config(tmp_path)
    sink = TensorBoardSink(made, attempt=1, first_step=0)
    sink.write(1, {LOSS: 9.0})
    while not is_on_disk(made):
        time.sleep(0.01)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    for step in (2, 3):
        sink.write(step, {LOSS: 8.0})
    sink.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (warning,) = warnings(caplog)
    assert "File too large; metrics.jsonl is complete" in warning
    assert shown(made) == [(1, 9.0)]


def is_on_disk(made: RunConfig) -> bool:
    """Whether the first record is in the file."""
    return any(LOSS.encode() in path.read_bytes() for path in made.run_dir.glob("tensorboard/*"))


def test_a_folder_that_cannot_be_written_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(tmp_path)
    (made.run_dir / "tensorboard").touch()
    record(made, attempt=1, first_step=0, losses={1: 9.0, 2: 8.0})
    (warning,) = warnings(caplog)
    assert "FileExistsError" in warning


def test_a_disk_that_hangs_holds_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path)
    monkeypatch.setattr(tensorboard_sink, "MAX_WAITING", 3)
    monkeypatch.setattr(tensorboard_sink, "FINISH_SECONDS", 0.1)
    sink = TensorBoardSink(made, attempt=1, first_step=0)
    returns = threading.Event()
    monkeypatch.setattr(
        "tensorboard.summary.writer.record_writer.RecordWriter.flush", lambda self: returns.wait()
    )
    started = time.monotonic()
    for step in range(100):
        sink.write(step, {LOSS: 9.0})
    sink.close()
    assert time.monotonic() - started < 2
    returns.set()
    (warning,) = warnings(caplog)
    assert "3 records wait for the disk" in warning


def test_a_missing_package_is_an_error_before_training(
    says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    made = load_config(["experiment=tiny", "observe=tensorboard"])  # a run's folder stays readable
    with pytest.raises(ConfigError) as caught:
        check_files(made)
    says(caught.value)
