"""Saves in the background: the bytes of a save that training waits for, and training goes on.

Programs are patched so that a save on one rank is slow, fails, hangs, or is killed.
"""

import errno
import json
import os
import signal
import threading
import time
from datetime import timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

import glm_dist.checkpoint.save as save_module
from glm_dist.checkpoint import storage
from glm_dist.checkpoint.background import BackgroundWriter
from glm_dist.cli.main import main_train
from glm_dist.errors import TrainingError
from glm_dist.train import saver
from glm_dist.train.replicas import ReplicaCheck
from glm_dist.train.state import save_state, training_fragments
from glm_dist.train.step_done import StepDone
from tests.ranks import run_ranks
from tests.train.grid import Case, build_engine, rank_device, run_steps
from tests.train.jobs import make_saving_files, with_ranks
from tests.train.test_job import losses_of, weights_of

STEPS = 30

CASES = [
    Case(dp=2, zero=0, micro_batch=8),
    Case(dp=2, zero=1, micro_batch=8),
    Case(dp=2, zero=2, micro_batch=8),
    Case(dp=2, zero=3, micro_batch=8),
    Case(dp=2, zero=1, micro_batch=8, dtype="bf16", offload=True),
    Case(pp=2, zero=1, micro_batch=8),
]


Content = dict[str, object]


def content_of(folder: Path) -> Content:
    """Manifest, and SHA-256 of each file with tensors."""
    content: Content = json.loads((folder / "manifest.json").read_text())
    hashes = {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.distcp")}
    return content | {"hashes": hashes}


def save_both_ways(cases: list[Case], folder: str) -> list[tuple[Content, Content]]:
    """Save a step twice; the one in the background writes only after another step."""
    writer = BackgroundWriter(rank_device(), timeout=timedelta(seconds=60))
    kept, train_more = save_module.write_tensors, threading.Event()

    def late(*arguments: object) -> object:
        train_more.wait()
        return kept(*arguments)

    found = []
    for number, case in enumerate(cases):
        engine = build_engine(case)
        run_steps(engine, case, range(1))
        path = Path(folder) / str(number)
        waited = save_state(engine, path.with_suffix(".waited"), step=1, extra={}, keep_last=1)
        save_module.write_tensors = late
        writer.reserve(training_fragments(engine))
        begun = save_state(
            engine, path.with_suffix(".begun"), step=1, extra={}, keep_last=1, write=writer.start
        )
        run_steps(engine, case, range(1, 2))
        assert writer.poll() is None
        train_more.set()
        outcome = writer.wait()
        save_module.write_tensors = kept
        train_more.clear()
        assert outcome is not None
        assert outcome.error is None, outcome.error
        dist.barrier()
        found.append((content_of(waited), content_of(begun)))
    return found


def test_files_are_equal_to_those_of_a_save_that_training_waits_for(tmp_path: Path) -> None:
    for case, (waited, begun) in zip(
        CASES, run_ranks(save_both_ways, CASES, str(tmp_path), world_size=2)[0], strict=True
    ):
        assert waited == begun, case
        assert len(waited["hashes"]) == 2


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run folder's parent, and the overrides of the tiny job in the background."""
    folder = tmp_path_factory.mktemp("saver")
    typed = make_saving_files(folder, steps=STEPS, interval=5, keep_last=9)
    return folder / "runs", typed


@pytest.fixture(scope="module")
def whole(job: tuple[Path, list[str]]) -> dict[str, np.ndarray]:
    """Weights of the run whose saves training waits for."""
    runs, overrides = job
    typed = [*overrides, "checkpoint.background=false", f"checkpoint.interval={STEPS}"]
    for done in with_ranks([*typed, "run.name=whole"], 2):
        assert done.returncode == 0, done.stderr
    return weights_of(runs / "whole", STEPS)


def events_of(run: Path, kind: str) -> list[int]:
    """Steps of the events of a kind, in order."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if record.get("event") == kind]


def saved_steps(run: Path) -> list[int]:
    """Steps of the checkpoints."""
    names = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    return [int(name.removeprefix("step_")) for name in names]


def assert_equal_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, weights in expected.items():
        assert np.array_equal(found[name], weights), name


def refused_writes(errors: dict[int, int]) -> int:
    """``train.py`` whose rank 1 cannot write the tensors of some steps."""
    kept = storage._HashingStream.write

    def write(self: object, content: object) -> int:
        step = int(threading.current_thread().name.rpartition(" ")[2])
        if os.environ["RANK"] == "1" and step in errors:
            raise OSError(errors[step], os.strerror(errors[step]))
        return kept(self, content)

    storage._HashingStream.write = write
    return main_train()


def test_a_failed_save_is_reported_once_and_the_next_one_tries_again(
    job: tuple[Path, list[str]], whole: dict[str, np.ndarray]
) -> None:
    runs, overrides = job
    errors = {5: errno.ENOSPC, 15: errno.EACCES, 25: errno.EIO}

    done = with_ranks([*overrides, "run.name=failed"], 2, program=partial(refused_writes, errors))

    assert [each.returncode for each in done] == [0, 0], done[0].stderr
    console = done[0].stderr + done[1].stderr
    for step, reason in (
        (5, "No space left on device"),
        (15, "Permission denied"),
        (25, "Input/output error"),
    ):
        assert console.count(f"could not write tensors: {reason}") == 1
        assert f"the checkpoint of step {step} failed: Rank 1 on " in console
    assert "Traceback" not in console
    assert events_of(runs / "failed", "checkpoint_failed") == [
        5,
        15,
        25,
    ]
    assert events_of(runs / "failed", "checkpoint") == [10, 20, 30]
    assert saved_steps(runs / "failed") == [10, 20, 30]
    assert_equal_bits(weights_of(runs / "failed", STEPS), whole)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((5, 10, 15), "3 checkpoints in a row could not be written; training stops"),
        ((STEPS,), "CheckpointError: Rank 1 on "),
    ],
    ids=["third in a row", "last"],
)
def test_failures_that_would_lose_work_end_the_run(
    job: tuple[Path, list[str]], steps: tuple[int, ...], said: str
) -> None:
    runs, overrides = job
    name = f"run.name=ended_{len(steps)}"
    program = partial(refused_writes, dict.fromkeys(steps, errno.ENOSPC))

    done = with_ranks([*overrides, name], 2, program=program)

    assert all(each.returncode not in (0, 1) for each in done), done[0].stderr
    assert (done[0].stderr + done[1].stderr).count(said) == 1
    assert max(losses_of(runs / f"ended_{len(steps)}")) >= steps[-1]


def hanging_write() -> int:
    """``train.py`` whose rank 1 hangs in its first save; a minute lasts three seconds."""
    kept = save_module.write_tensors

    def write(*arguments: object) -> object:
        if os.environ["RANK"] == "1":
            time.sleep(10_000)
        return kept(*arguments)

    save_module.write_tensors = write
    saver.timedelta = lambda minutes: timedelta(seconds=3 * minutes)
    return main_train()


@pytest.mark.timeout(90)
def test_a_hung_save_keeps_neither_training_nor_the_process(job: tuple[Path, list[str]]) -> None:
    runs, overrides = job
    typed = [*overrides, "checkpoint.interval=20", "checkpoint.timeout_minutes=1", "run.name=hung"]

    done = with_ranks(typed, 2, program=hanging_write)

    assert all(each.returncode not in (0, 1) for each in done), done[0].stderr
    console = done[0].stderr + done[1].stderr
    assert "the checkpoint of step 20 failed: " in console
    assert console.count("HungSaveError: ") == 1
    assert "/.tmp-step_0000020-1: rank 1 on " in console
    assert " could not write tensors within 0.05 minutes." in console
    assert max(losses_of(runs / "hung")) == STEPS


def fails_during_a_slow_save() -> int:
    """``train.py`` that fails in step 6, while the save of step 5 needs six seconds more."""
    kept, look = save_module.write_tensors, ReplicaCheck.due
    failed = threading.Event()

    def write(*arguments: object) -> object:
        failed.wait(60)
        time.sleep(6.0)
        return kept(*arguments)

    def due(self: ReplicaCheck, done: StepDone) -> bool:
        if done.step == 6:
            failed.set()
            raise TrainingError("step 6 has failed", key="test")
        return look(self, done)

    save_module.write_tensors = write
    ReplicaCheck.due = due
    return main_train()


def test_the_watchdog_lets_a_run_that_fails_finish_its_save(job: tuple[Path, list[str]]) -> None:
    runs, overrides = job
    deadlines = ["watchdog.first_minutes=0.5", "watchdog.floor_seconds=2"]
    typed = [*overrides, *deadlines, "run.name=failing", "checkpoint.interval=5"]

    done = with_ranks(typed, 2, program=fails_during_a_slow_save)

    assert [each.returncode for each in done] == [76, 76], done[0].stderr
    assert saved_steps(runs / "failing") == [5]
    assert events_of(runs / "failing", "checkpoint") == [5]


def stopped_in_a_save() -> int:
    """``train.py`` that gets a TERM at the third look at its first save, which then goes on."""
    kept, look = save_module.write_tensors, BackgroundWriter.poll
    asked = threading.Event()
    looks = []

    def poll(self: BackgroundWriter) -> object:
        looks.append(self)
        if os.environ["RANK"] == "0" and len(looks) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            asked.set()
        return look(self)

    def write(*arguments: object) -> object:
        if os.environ["RANK"] == "0":
            asked.wait(60)
        return kept(*arguments)

    BackgroundWriter.poll = poll
    save_module.write_tensors = write
    return main_train()


def killed_in_a_save() -> int:
    """``train.py`` whose ranks are killed in their first save, after they wrote tensors."""
    kept = save_module.write_tensors

    def write(*arguments: object) -> object:
        kept(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    save_module.write_tensors = write
    return main_train()


@pytest.mark.timeout(90)
def test_a_stop_waits_for_the_save_in_flight_and_a_kill_loses_only_that_save(
    job: tuple[Path, list[str]], whole: dict[str, np.ndarray]
) -> None:
    runs, overrides = job
    run = runs / "stopped"
    typed = [*overrides, "run.name=stopped"]

    stopped = with_ranks([*typed, "checkpoint.interval=10"], 2, program=stopped_in_a_save)
    assert [each.returncode for each in stopped] == [75, 75], stopped[0].stderr
    assert max(losses_of(run)) == 14
    assert saved_steps(run) == [10, 14]
    assert events_of(run, "checkpoint") == [10, 14]

    killed = with_ranks([*typed, "checkpoint.interval=1"], 2, program=killed_in_a_save)
    assert [each.returncode for each in killed] == [-signal.SIGKILL] * 2
    assert saved_steps(run) == [10, 14]

    for each in with_ranks(typed, 2):
        assert each.returncode == 0, each.stderr
    assert_equal_bits(weights_of(run, STEPS), whole)
