"""A signal to one rank stops all of them after a checkpoint; the next start resumes."""

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
from glm_dist.train.preemption import StopRequest
from tests.ranks import run_ranks
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
    request = StopRequest()
    before = request.agreed()
    os.kill(os.getpid(), signal.SIGUSR1)
    return before, request.agreed(), signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_once_agreed_a_rank_lives_to_end_with_its_own_status() -> None:
    # Else srun's TERM, sent when the first rank has ended with 75, ends the others with 143.
    assert run_ranks(_ask_and_agree, world_size=1) == [(False, True, True)]


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
