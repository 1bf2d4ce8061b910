"""A mistake that all ranks meet is printed once, whichever is first, by one that lives."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glm_dist.cli import once
from glm_dist.config.launch import LaunchEnvironment
from glm_dist.errors import DataError
from tests.train.jobs import BIN, ROOT, clean_environment, free_port

MISTAKE = ("experiment=tiny", "run.name=x", "model.num_layer=3")
SAID = "ConfigError: model has no key num_layer"

# As srun with --kill-on-bad-exit: each task on a node of its own, all killed when one fails.
SRUN = """
import os, subprocess, sys, time
tasks = []
for rank in range(3):
    own = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
    os.makedirs(f"{sys.argv[1]}/{rank}", exist_ok=True)
    own["TMPDIR"] = f"{sys.argv[1]}/{rank}"  # nodes do not share it
    tasks.append(subprocess.Popen(sys.argv[2:], env={**os.environ, **own}))
while all(task.poll() is None for task in tasks):
    time.sleep(0.02)
ended = [task.returncode for task in tasks]
for task in tasks:
    task.kill()
    task.wait()
sys.exit(max(code for code in ended if code is not None))
"""


def slow_python(folder: Path, *, slow: str) -> Path:
    """An interpreter that starts 3 s late on one rank."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/bash\n[ "${{RANK:-$SLURM_PROCID}}" = {slow} ] && sleep 3\n'
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("slow", ["0", "1"])
def test_under_srun_the_message_is_out_before_the_first_rank_leaves(
    slow: str, tmp_path: Path
) -> None:
    step = {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-c", SRUN, str(tmp_path), str(slow_python(tmp_path, slow=slow))]
    done = subprocess.run(
        [*command, "train.py", *MISTAKE],
        cwd=ROOT,
        env=clean_environment(**step),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.count(SAID) == 1, done.stderr
    assert done.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
@pytest.mark.parametrize("slow", ["0", "1"])
def test_under_other_launchers_too(launcher: str, slow: str, tmp_path: Path) -> None:
    python = str(slow_python(tmp_path, slow=slow))
    port = str(free_port())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    deepspeed = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--no_python"]
    command = {
        "torchrun": [*torchrun, f"--master-port={port}", "--no-python"],
        "deepspeed": [*deepspeed, "--no_local_rank", "--master_port", port],
    }[launcher]
    done = subprocess.run(
        [*command, python, "train.py", *MISTAKE],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.stdout + done.stderr).count(SAID) == 1, done.stdout + done.stderr


def test_a_node_whose_message_is_its_own_prints_it_with_rank_and_host(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(once, "SAME_SECONDS", 0.1)
    monkeypatch.setattr(once.tempfile, "tempdir", str(tmp_path))  # type: ignore[attr-defined]
    launch = LaunchEnvironment(2, 4, 0, 2, "127.0.0.1", free_port(), "srun")
    error = DataError("vocab.txt does not exist.", key="tokenizer.path")
    began = time.monotonic()
    assert once.print_once(error, launch, is_everywhere=False) == 2
    said = capsys.readouterr().err
    assert re.match(rf"rank 2 on {re.escape(os.uname().nodename)}: DataError: vocab.txt", said)
    assert "not on a disk that all hosts share" in said
    # Another rank of the node has nothing to add.
    other = LaunchEnvironment(3, 4, 1, 2, "127.0.0.1", launch.master_port, "srun")
    assert once.print_once(error, other, is_everywhere=False) == 2
    assert capsys.readouterr().err == ""
    assert time.monotonic() - began < 5


def test_without_an_answer_of_the_first_node_the_others_print(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(once, "FIRST_NODE_SECONDS", 0.3)
    monkeypatch.setattr(once.tempfile, "tempdir", str(tmp_path))  # type: ignore[attr-defined]
    launch = LaunchEnvironment(1, 2, 0, 1, "127.0.0.1", free_port(), "srun")
    once.print_once(DataError("no.", key="x"), launch, is_everywhere=True)
    assert capsys.readouterr().err == f"rank 1 on {os.uname().nodename}: DataError: no.\n"


def test_a_claim_that_another_rank_removes_meanwhile_does_no_harm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(once.tempfile, "tempdir", str(tmp_path))  # type: ignore[attr-defined]
    port = free_port()
    for rank in (1, 0):
        launch = LaunchEnvironment(rank, 2, rank, 2, "127.0.0.1", port, "torchrun")
        once.print_once(DataError("no.", key="x"), launch, is_everywhere=True)
        # Listed with the other claims, but not there when its age is asked.
        (tmp_path / f"glm_dist-{os.getuid()}-{rank}").symlink_to(tmp_path / "nowhere")
    assert capsys.readouterr().err == "DataError: no.\n"
