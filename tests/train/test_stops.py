"""Signals under real launchers leave nothing running, and lose no step but the running one."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.jobs import ROOT, clean_environment, make_files
from tests.train.stops import OVERRIDES, Outcome, stop_in
from tests.train.test_job import losses_of

# Launcher, phase, target, signal; its exit status, and the reason in the marker: whichever of two
# requests a rank notes first, its own signal or what the launcher makes of it.
DEEPSPEED = [
    ("deepspeed", "step", "launch.py", "TERM", 1, "SIGTERM"),
    ("deepspeed", "step", "group", "INT", -2, "SIGINT|SIGTERM"),
    ("deepspeed", "step", "group", "HUP", -1, "SIGHUP|launcher gone"),
    ("deepspeed", "step", "launcher", "KILL", -9, "launcher gone"),
    ("deepspeed", "validation", "rank0", "USR1", 75, "SIGUSR1"),
    ("deepspeed", "save", "launcher", "TERM", -15, "launcher gone"),
    ("deepspeed", "first", "group", "TERM", -15, "SIGTERM|launcher gone"),
]
TORCHRUN = [
    ("torchrun", "step", "launcher", "TERM", 1, "SIGTERM"),
    ("torchrun", "step", "launcher", "USR1", -10, "launcher gone"),
    ("torchrun", "step", "group", "INT", 1, "SIGINT"),
    ("torchrun", "validation", "rank0", "USR1", 1, "SIGUSR1"),
    ("torchrun", "save", "launcher", "TERM", 1, "SIGTERM"),
    ("torchrun", "first", "launcher", "KILL", -9, "launcher gone"),
]
SRUN = [
    ("srun", "step", "launcher", "USR1", 75, "SIGUSR1"),
    ("srun", "save", "rank1", "TERM", 75, "SIGTERM"),
    ("srun", "step", "launcher", "KILL", -9, "launcher gone"),
]
PYTHON = [
    ("python", "save", "launcher", "TERM", 75, "SIGTERM"),
    ("python", "validation", "launcher", "INT", 75, "SIGINT"),
]


def check_saved(outcome: Outcome, status: int, reason: str) -> None:
    assert outcome.orphans == 0, outcome
    assert outcome.status == status, outcome.text[-3000:]
    assert outcome.saved == outcome.step > 0, outcome
    assert outcome.stopped["reason"] in reason.split("|")
    assert outcome.stopped["saved"] is True
    assert outcome.stopped["step"] == outcome.step


def check_not_begun(outcome: Outcome) -> None:
    assert outcome.orphans == 0, outcome
    assert (outcome.step, outcome.saved) == (0, 0), outcome
    assert "stopped before training; nothing to save" in outcome.text, outcome.text[-3000:]
    # Launchers print tracebacks of their own.
    assert not re.search(r'File "[^"]*(glm_dist/|train\.py)', outcome.text), outcome.text[-3000:]


def test_a_killed_launcher_leaves_nothing_behind(tmp_path: Path) -> None:
    # `kill $(pidof deepspeed)`: it dies at once and tells nobody.
    outcome = stop_in("deepspeed", "step", "launcher", "SIGTERM", tmp_path)
    check_saved(outcome, -15, "launcher gone")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("launcher", "phase", "target", "name", "status", "reason"),
    [*DEEPSPEED, *TORCHRUN, *SRUN, *PYTHON],
)
def test_a_signal_saves(
    launcher: str,
    phase: str,
    target: str,
    name: str,
    status: int,
    reason: str,
    tmp_path: Path,
) -> None:
    outcome = stop_in(launcher, phase, target, f"SIG{name}", tmp_path)
    check_saved(outcome, status, reason)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("launcher", "phase", "target", "name", "status"),
    [
        ("deepspeed", "started", "rank1", "TERM", 75),
        ("deepspeed", "building", "launcher", "TERM", -15),
        ("torchrun", "started", "rank1", "TERM", 1),
        ("torchrun", "building", "launcher", "KILL", -9),
        ("srun", "started", "launcher", "TERM", 75),
        ("python", "started", "launcher", "INT", 75),
    ],
)
def test_a_signal_in_the_start_up_ends_it(
    launcher: str, phase: str, target: str, name: str, status: int, tmp_path: Path
) -> None:
    outcome = stop_in(launcher, phase, target, f"SIG{name}", tmp_path)
    check_not_begun(outcome)
    assert outcome.status == status


def may_make_namespaces() -> bool:
    """True if this user may run a program as the first process of a PID namespace."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return os.getuid() == 0 and subprocess.run(command, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("phase", ["step", "save"])
def test_a_container_that_is_stopped_saves(phase: str, tmp_path: Path) -> None:
    if not may_make_namespaces():
        pytest.skip("needs root and PID namespaces")
    outcome = stop_in("container", phase, "launcher", "SIGTERM", tmp_path)
    check_saved(outcome, 75, "launcher gone")


@pytest.mark.slow
def test_a_closed_terminal_saves(tmp_path: Path) -> None:
    # Each write to a terminal that is gone fails, also during the save.
    typed = [*make_files(tmp_path), *OVERRIDES, "parallel=single"]
    pid, terminal = pty.fork()
    if pid == 0:
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "train.py", *typed], clean_environment())
    run = tmp_path / "runs" / "trial"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or max(losses_of(run), default=0) < 3:
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 65536)

    os.close(terminal)

    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    assert json.loads((run / "stopped").read_text())["reason"] == "SIGHUP"
    assert (run / "checkpoints" / f"step_{max(losses_of(run)):07d}" / "manifest.json").exists()
