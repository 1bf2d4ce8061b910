"""A signal to one rank stops all of them after a checkpoint; the next start resumes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from glm_dist.cli.main import main_train
from glm_dist.stop_signals import StopListener
from glm_dist.train.preemption import StopRequest
from tests.ranks import run_programs, run_ranks
from tests.train import stop_program
from tests.train.jobs import ROOT, clean_environment, free_port, make_files, with_ranks
from tests.train.test_job import losses_of, weights_of

ENDLESS = "run.steps=1000000"
ARGUMENTS = (
    "parallel=tp2",
    "lr_schedule.decay_steps=400",
    "evaluation.interval=0",
    "checkpoint.interval=1000000",
)


def launcher(overrides: list[str]) -> list[str]:
    """Two ranks under torchrun."""
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    return [*program, f"--master-port={free_port()}", "train.py", *overrides]


def rank_process(parent: int, rank: int) -> int:
    """Process id of a rank below a launcher."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            status = (folder / "status").read_text()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        is_child = f"PPid:\t{parent}\n" in status
        if is_child and b"train.py" in command and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no rank {rank} below {parent}")


def wait_for_step(run: Path, step: int) -> None:
    """Until metrics.jsonl has a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        file = run / "metrics.jsonl"
        if file.exists() and max(losses_of(run), default=0) >= step:
            return
        time.sleep(0.1)
    raise AssertionError(f"step {step} not reached")


def _ask_and_agree() -> tuple[bool, bool, bool]:
    listener = StopListener()
    request = StopRequest(listener)
    before = request.agreed()
    os.kill(os.getpid(), signal.SIGUSR1)
    agreed = request.agreed()
    listener.ignore()
    return before, agreed, signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_at_its_end_a_rank_lives_to_exit_with_its_own_status() -> None:
    # Else srun's TERM, sent when the first rank has ended with 75, ends the others with 143.
    assert run_ranks(_ask_and_agree, world_size=1) == [(False, True, True)]


def _disarm_and_agree() -> bool:
    request = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # as a library might
    signal.set_wakeup_fd(-1)
    request.begin_training()
    os.kill(os.getpid(), signal.SIGTERM)
    return request.agreed()


def test_a_library_cannot_take_the_signals_away() -> None:
    assert run_ranks(_disarm_and_agree, world_size=1) == [True]


def train_until_asked_to_stop(run: Path) -> int:
    """``train.py`` that gets a TERM after its third step."""

    def ask() -> None:
        wait_for_step(run, 3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    return main_train()


def test_a_stopped_run_that_saves_nothing_does_not_ask_to_be_started_again(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "trial"
    typed = [a for a in make_files(tmp_path) if "checkpoint." not in a]
    (done,) = with_ranks(
        [*typed, ENDLESS, "checkpoint=none", "run.name=trial"],
        1,
        program=partial(train_until_asked_to_stop, run),
    )

    assert not (run / "checkpoints").exists()
    assert done.returncode == 130, done.stderr[-2000:]
    assert re.findall(r"WARNING .*(stopped without a checkpoint.*)", done.stderr) == [
        "stopped without a checkpoint, because checkpoint.interval=0; status=130"
    ]


def signalled_in(phase: str, folder: Path, number: signal.Signals, *, times: int = 1) -> int:
    """``train.py`` whose rank 0 gets a signal when every rank has reached a phase."""

    def ask() -> None:
        late = {"1"} if phase == "joining" else set()
        ranks = {str(rank) for rank in range(int(os.environ.get("WORLD_SIZE", "1")))} - late
        while not all((folder / f"{phase}.{rank}").exists() for rank in ranks):
            time.sleep(0.02)
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    stop_program.slow_down(phase, folder)
    if stop_program.my_rank() == "0":
        threading.Thread(target=ask, daemon=True).start()
    return main_train()


def stopped_in(
    phase: str, folder: Path, *typed: str, number: signal.Signals = signal.SIGINT
) -> list[subprocess.CompletedProcess[str]]:
    """Two ranks that are asked to stop in a phase."""
    overrides = [*make_files(folder), *ARGUMENTS, ENDLESS, "run.name=trial", *typed]
    return with_ranks(overrides, 2, program=partial(signalled_in, phase, folder, number))


def marker(folder: Path, name: str = "stopped") -> dict[str, object]:
    """Return a marker of the run."""
    content: dict[str, object] = json.loads((folder / "runs" / "trial" / name).read_text())
    return content


def test_a_validation_is_given_up_for_a_stop(tmp_path: Path) -> None:
    typed = ("evaluation.interval=2", "observe.log_interval=3")
    ended = stopped_in("validation", tmp_path, *typed)

    assert [done.returncode for done in ended] == [75, 75], ended[0].stderr[-2000:]
    assert marker(tmp_path) == {
        "step": 2,
        "attempt": 1,
        "reason": "SIGINT",
        "saved": True,
        "status": 75,
    }
    assert (tmp_path / "runs/trial/checkpoints/step_0000002/manifest.json").exists()
    records = (tmp_path / "runs/trial/metrics.jsonl").read_text()
    assert "valid/" not in records
    assert max(losses_of(tmp_path / "runs/trial")) == 2  # the window was cut short, not lost


def test_a_request_during_a_save_needs_no_further_step(tmp_path: Path) -> None:
    typed = ("checkpoint.interval=3", "checkpoint.background=false")
    ended = stopped_in("save", tmp_path, *typed, number=signal.SIGUSR2)

    assert [done.returncode for done in ended] == [75, 75], ended[0].stderr[-2000:]
    assert (marker(tmp_path)["step"], marker(tmp_path)["reason"]) == (3, "SIGUSR2")


@pytest.mark.parametrize("phase", ["joining", "building"])
def test_a_request_in_the_start_up_ends_all_ranks(phase: str, tmp_path: Path) -> None:
    began = time.monotonic()
    ended = stopped_in(phase, tmp_path, number=signal.SIGTERM)

    assert [done.returncode for done in ended] == [75, 75], ended[0].stderr[-2000:]
    assert "stopped before training; nothing to save reason=SIGTERM" in ended[0].stderr
    assert "Traceback" not in ended[0].stderr + ended[1].stderr
    if phase == "joining":
        assert time.monotonic() - began < 15  # rank 1 would have joined after 20 s
    else:
        assert (marker(tmp_path)["saved"], marker(tmp_path)["status"]) == (False, 75)
        assert marker(tmp_path)["step"] is None  # not 0: the run may have checkpoints


def test_a_second_interrupt_ends_a_save(tmp_path: Path) -> None:
    overrides = [a for a in [*make_files(tmp_path), *ARGUMENTS] if a != "parallel=tp2"]
    program = partial(signalled_in, "save", tmp_path, signal.SIGINT, times=2)
    (done,) = run_programs(
        program,
        ["train.py", *overrides, ENDLESS, "run.name=trial", "checkpoint.interval=3"],
        [clean_environment()],
    )

    assert done.returncode == 130, done.stderr[-2000:]
    assert done.stderr.endswith("interrupted twice: ended without saving\n")
    assert "Traceback" not in done.stderr


def test_a_run_stops_before_its_time_is_over_and_goes_on_to_its_end(tmp_path: Path) -> None:
    overrides = [*make_files(tmp_path), *ARGUMENTS, "run.name=trial"]

    for done in with_ranks([*overrides, ENDLESS, "run.max_minutes=0.1"], 2):
        assert done.returncode == 75, done.stderr[-2000:]
    step = int(str(marker(tmp_path)["step"]))
    assert marker(tmp_path)["reason"] == "run.max_minutes=0.1"
    assert "run.max_minutes=0.1 leaves time for one save" in done.stderr or step > 0

    for last in (step + 2, step + 3):
        for done in with_ranks([*overrides, f"run.steps={last}"], 2):
            assert done.returncode == 0, done.stderr[-2000:]
        assert marker(tmp_path, "finished")["step"] == last
        assert not (tmp_path / "runs/trial/stopped").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_signal_to_one_rank_saves_and_stops_all(tmp_path: Path) -> None:
    overrides = [*make_files(tmp_path), *ARGUMENTS]
    runs = tmp_path / "runs"
    job = subprocess.Popen(
        launcher([*overrides, ENDLESS, "run.name=stopped"]),
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(runs / "stopped", 3)
    os.kill(rank_process(job.pid, 1), signal.SIGUSR1)
    _, err = job.communicate(timeout=120)

    stopped_at = max(losses_of(runs / "stopped"))
    assert re.search(r"rank=1 WARNING .*signal=SIGUSR1", err)
    assert re.search(r"exitcode +: 75", err), err[-2000:]
    assert (runs / "stopped" / "checkpoints" / f"step_{stopped_at:07d}" / "manifest.json").exists()

    last = stopped_at + 3
    for name in ("stopped", "whole"):
        for done in with_ranks([*overrides, f"run.steps={last}", f"run.name={name}"], 2):
            assert done.returncode == 0, done.stderr
    whole = weights_of(runs / "whole", last)
    for name, found in weights_of(runs / "stopped", last).items():
        assert np.array_equal(found, whole[name]), name
