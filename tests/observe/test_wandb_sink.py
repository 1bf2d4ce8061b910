"""W&B records online or offline, over attempts, and neither stops training nor holds it up.

The real library runs here, against addresses of this machine; nothing leaves it.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from glm_dist.config.schema import RunConfig
from glm_dist.observe import wandb_sink
from glm_dist.observe.endings import Stopped, write_finished, write_stopped
from glm_dist.observe.sinks import JsonlSink
from glm_dist.observe.wandb_sink import WandbSink, has_wandb_key
from tests.observe.test_sinks import config
from tests.observe.wandb_files import configuration, exit_code, history
from tests.train.jobs import free_port


@pytest.mark.parametrize(
    ("environ", "netrc", "found"),
    [
        ({"WANDB_API_KEY": "k"}, "", True),
        ({}, "machine api.wandb.ai login user password k", True),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "machine api.wandb.ai password k", False),
        ({"WANDB_BASE_URL": "https://w.example.org"}, "machine w.example.org password k", True),
        ({}, "", False),
        ({}, "not a netrc file", False),
    ],
)
def test_a_key_is_looked_for_where_wandb_looks(
    tmp_path: Path, environ: dict[str, str], netrc: str, found: bool
) -> None:
    (tmp_path / ".netrc").write_text(netrc)
    assert has_wandb_key({"HOME": str(tmp_path), **environ}) is found


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A home without W&B's settings."""
    return {"HOME": str(folder), "PATH": os.environ["PATH"], **more}


def online(folder: Path, port: int) -> dict[str, str]:
    """A key, and a server on this machine."""
    address = f"http://127.0.0.1:{port}"
    return environment(folder, WANDB_API_KEY="0" * 40, WANDB_BASE_URL=address)


@pytest.fixture(autouse=True)
def no_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody writes how these runs have ended."""
    monkeypatch.setattr(wandb_sink, "MARKER_SECONDS", 0.0)


def record(made: RunConfig, environ: dict[str, str], *, attempt: int, steps: range) -> None:
    """Be an attempt of a run, with its two records."""
    first_step = steps.start - 1
    metrics = made.run_dir / "metrics.jsonl"
    jsonl = JsonlSink(metrics, attempt=attempt, first_step=first_step)
    sink = WandbSink(made, attempt=attempt, environ=environ, first_step=first_step)
    for step in steps:
        for each in (jsonl, sink):
            each.write(step, {"train/loss": 2.0 + step})
    for each in (jsonl, sink):
        each.close()
    sink.wait()


def recorded(run: Path) -> list[tuple[int, int, float]]:
    """Attempt, step and loss of every row of all files, which have one run's id."""
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert {path.stem for path in files} == {f"run-{(run / 'wandb_id.txt').read_text().strip()}"}
    return sorted((r["attempt"], r["step"], r["train/loss"]) for f in files for r in history(f))


EXPECTED = [(1, 1, 3.0), (1, 2, 4.0), (1, 3, 5.0)]

RESUMED = [(1, 1, 3.0), (1, 2, 4.0), (2, 3, 5.0), (2, 4, 6.0)]
"""Two attempts; the second begins after step 2, and replaces what the first had beyond."""


def test_without_a_key_it_records_offline_through_the_signals_of_a_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(tmp_path, "online")
    sink = WandbSink(made, attempt=1, environ=environment(tmp_path))
    sink.write(1, {"train/loss": 3.0})
    deadline = time.monotonic() + 60
    while not list(made.run_dir.glob("wandb/offline-run-*/*.wandb")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sink._process is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        sink._process.send_signal(number)
    sink.write(2, {"train/loss": 4.0})
    sink.close()
    sink.wait()
    assert recorded(made.run_dir) == EXPECTED[:2]
    assert "no W&B API key found; recording offline" in caplog.text
    assert "metrics.jsonl is complete" not in caplog.text


class Failing(BaseHTTPRequestHandler):
    """A server, or somebody's proxy, that answers every request with an error."""

    def do_GET(self) -> None:
        self.send_error(503)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def server(kind: str) -> Iterator[int]:
    """Port of a server that refuses connections, answers nothing, or answers with errors."""
    if kind == "failing":
        with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as failing:
            threading.Thread(target=failing.serve_forever, daemon=True).start()
            yield failing.server_port
            failing.shutdown()
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield free_port() if kind == "refusing" else listener.getsockname()[1]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("refusing", "Connection refused"), ("mute", "TimeoutError"), ("failing", "CommError")],
)
def test_without_a_server_attempts_are_recorded_offline_as_one_run(
    kind: str,
    reason: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wandb_sink, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(wandb_sink, "INIT_SECONDS", 0.5)
    made = config(tmp_path, "online")
    with server(kind) as port:
        record(made, online(tmp_path, port), attempt=1, steps=range(1, 4))
        if kind == "refusing":
            record(made, online(tmp_path, port), attempt=2, steps=range(3, 5))
    assert recorded(made.run_dir) == (RESUMED if kind == "refusing" else EXPECTED)
    assert "recording offline, for `wandb sync`" in caplog.text
    assert reason in caplog.text


def test_attempts_recorded_offline_are_one_history_with_every_step_once(tmp_path: Path) -> None:
    made = config(tmp_path, "offline")
    made.run_dir.mkdir(parents=True, exist_ok=True)
    (made.run_dir / "provenance.json").write_text('{"attempts": [{"job": {"SLURM_JOB_ID": "7"}}]}')
    for attempt, steps, status in (
        (1, range(1, 5), 75),
        (2, range(4, 8), 75),
        (3, range(6, 10), 0),
    ):
        if status:
            stopped = Stopped(steps.stop - 1, attempt, "SIGUSR1", saved=True, status=status)
            write_stopped(made.run_dir, stopped)
        else:
            write_finished(made.run_dir, step=9, attempt=attempt)
        record(made, environment(tmp_path), attempt=attempt, steps=steps)
        (file,) = made.run_dir.glob("wandb/offline-run-*/run-*.wandb")
        assert exit_code(file) == status
    assert [step for _, step, _ in recorded(made.run_dir)] == list(range(1, 10))
    assert [row["step"] for row in history(file)] == list(range(1, 10))
    assert [row["_step"] for row in history(file)] == list(range(9))
    assert configuration(file)["provenance"] == {"job": {"SLURM_JOB_ID": "7"}}
    assert len(list(made.run_dir.glob("wandb/superseded/offline-run-*"))) == 2


def test_a_run_that_leaves_no_marker_has_crashed(tmp_path: Path) -> None:
    made = config(tmp_path, "offline")
    record(made, environment(tmp_path), attempt=1, steps=range(1, 4))
    (file,) = made.run_dir.glob("wandb/offline-run-*/run-*.wandb")
    assert exit_code(file) == 1


@pytest.mark.parametrize("content", ["", "\n", "../../x", "\0\0"], ids=repr)
def test_a_damaged_id_is_replaced_with_a_warning(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb_id.txt").write_text(content)
    found = wandb_sink._run_id(tmp_path)
    assert len(found) == 8
    assert wandb_sink._run_id(tmp_path) == found
    assert caplog.text.count("damaged, so records go to a new W&B run") == 1


LIBRARY = """
import time, types
class Run:
    def define_metric(self, *a, **k): pass
    def log(self, values): {log}
    def finish(self, exit_code): {finish}
def init(**k): return Run()
def teardown(): pass
def Settings(**k): return types.SimpleNamespace(**k)
"""


def library(folder: Path, *, log: str = "pass", finish: str = "pass") -> dict[str, str]:
    """An environment whose wandb does this."""
    (folder / "wandb.py").write_text(LIBRARY.format(log=log, finish=finish))
    return environment(folder, PYTHONPATH=str(folder))


def test_a_library_that_fails_or_is_missing_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(tmp_path, "offline")
    broken = library(tmp_path, log="raise ConnectionError('the service died')")
    record(made, broken, attempt=1, steps=range(1, 4))
    assert caplog.text.count("ConnectionError: the service died") == 1
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError('No module named wandb')")
    record(made, broken, attempt=2, steps=range(1, 4))
    assert caplog.text.count("No module named wandb") == 1
    assert caplog.text.count("metrics.jsonl is complete") == 2


@pytest.mark.parametrize("call", ["log", "finish"])
def test_a_library_that_hangs_holds_the_end_of_a_job_no_longer_than_the_limit(
    call: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink, "FINISH_SECONDS", 1.0)
    made = config(tmp_path, "offline")
    environ = library(tmp_path, **{call: "time.sleep(1000)"})
    sink = WandbSink(made, attempt=1, environ=environ)
    started = time.monotonic()
    for step in range(1000):
        sink.write(step, {"train/loss": 2.0})
    sink.close()
    assert time.monotonic() - started < 1.0
    process = sink._process
    sink.wait()
    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 10.0
    assert "for `wandb sync`" in caplog.text


def train_and_die(folder: Path, environ: dict[str, str], answers: Connection) -> None:
    """Be a training process that is killed after three records."""
    wandb_sink.FINISH_SECONDS = 10.0 if "WANDB_API_KEY" in environ else 0.5
    wandb_sink.PROBE_SECONDS = 60.0
    sink = WandbSink(config(folder, "online"), attempt=1, environ=environ)
    for step in (1, 2, 3, 4):  # the fourth is taken after the third was handed over
        # Two of them fill a pipe.
        sink.write(step, {"train/loss": 2.0 + step, **{f"x/{i}": 1.0 for i in range(3000)}})
    deadline = time.monotonic() + 20
    while not sink._lines.empty():
        assert time.monotonic() < deadline, "records are not taken while it connects"
        time.sleep(0.001)
    assert sink._process is not None
    answers.send(sink._process.pid)
    os.kill(os.getpid(), signal.SIGKILL)


def killed(
    folder: Path, environ: dict[str, str], *, then: Callable[[], None] = lambda: None
) -> None:
    """Run a training process that is killed, do something, and wait for the end of W&B's."""
    context = multiprocessing.get_context("fork")
    answers, theirs = context.Pipe()
    training = context.Process(target=train_and_die, args=(folder, environ, theirs))
    training.start()
    theirs.close()  # so that the end of the process ends the wait as well
    pid = answers.recv()
    training.join()
    assert training.exitcode == -signal.SIGKILL
    then()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text():
        assert time.monotonic() < deadline, "W&B's process does not end"
        time.sleep(0.05)


def test_nothing_is_left_of_a_killed_job_even_if_the_library_hangs(tmp_path: Path) -> None:
    killed(tmp_path, library(tmp_path, log="time.sleep(1000)"))


def test_a_job_that_is_killed_while_it_connects_loses_no_record(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        killed(tmp_path, online(tmp_path, mute.getsockname()[1]), then=mute.close)
    assert recorded(tmp_path / "a")[:3] == EXPECTED[:3]
