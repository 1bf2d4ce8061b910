"""A bug stays a bug on a cluster: traceback where it happened, its rank named elsewhere, status 1.

A mistake of the user stays one message, whichever rank is fastest.
"""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from glm_dist.cli.main import main_train
from tests.train.jobs import BIN, ROOT, free_port, make_files, start, with_ranks

PATCHES = {
    "loader": """
from glm_dist.data.loader import TrainingBatches
kept = TrainingBatches.__next__
def broken(self):
    if rank == 1: {}["split"]
    return kept(self)
TrainingBatches.__next__ = broken
""",
    "loss": """
from glm_dist.train.task import Pretraining
kept = Pretraining.loss
def broken(self, *arguments):
    if rank == 1: {}["split"]
    return kept(self, *arguments)
Pretraining.loss = broken
""",
    "save": """
from glm_dist.checkpoint import storage
kept = storage._HashingStream.write
def broken(self, content):
    if rank == 1: {}["split"]
    return kept(self, content)
storage._HashingStream.write = broken
""",
    "worker": """
from glm_dist.data.row_source import RowSource
kept = RowSource.row
def broken(self, index):
    if rank == 1 and index > 4: {}["split"]
    return kept(self, index)
RowSource.row = broken
""",
    "full disk": """
from glm_dist.checkpoint import storage
def broken(self, content):
    raise OSError(28, "No space left on device")
storage._HashingStream.write = broken
""",
    "slow": """
import time
if rank == 0: time.sleep(3)
""",
}


def patched_program(patch: str) -> int:
    """``train.py`` after a patch."""
    exec(PATCHES[patch], {"rank": int(os.environ["RANK"])})
    return main_train()


def with_launcher(
    launcher: str, patch: str, overrides: list[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run two ranks of a patched program under a real launcher."""
    program = folder / f"{patch.replace(' ', '_')}_{launcher}.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.train.test_failures import patched_program\n"
        f"sys.exit(patched_program({patch!r}))\n"
    )
    port = str(free_port())
    if launcher == "deepspeed":
        command = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", port]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        command += [f"--master-port={port}"]
    return start([*command, str(program), *overrides])


SLOW = pytest.mark.slow


def overrides_of(run: str, folder: Path, fault_in: str = "") -> list[str]:
    """A job of two replicas; what breaks in a worker needs one."""
    typed = [*make_files(folder), f"run.name={run}", "parallel=dp2", "batch.micro_batch_size=1"]
    return [*typed, "data.num_workers=1"] if fault_in == "worker" else typed


def check_bug(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    """Rank 1 alone has the traceback; the other names it."""
    logs = [
        (folder / "runs" / "bug" / "log" / f"rank_{rank:04d}.log").read_text() for rank in (0, 1)
    ]
    assert done.returncode == 1
    assert re.search(r"(?s)Traceback .*\n\S*KeyError: 'split'", logs[1]), logs[1]
    assert "Traceback" not in logs[0], logs[0]
    named = r"rank 1 on \S+ failed: KeyError: .*log/rank_0001\.log"
    assert re.search(named, logs[0]), logs[0]
    assert re.search(named, done.stderr), done.stderr


@pytest.mark.parametrize("fault_in", ["loader", "loss", "save", "worker"])
def test_a_bug_keeps_its_traceback_and_the_others_name_its_rank(
    fault_in: str, tmp_path: Path
) -> None:
    overrides = overrides_of("bug", tmp_path, fault_in)

    first, second = with_ranks(overrides, 2, program=partial(patched_program, fault_in))

    check_bug(tmp_path, first)
    assert second.returncode == 1
    assert re.search(r"(?s)Traceback .*\n\S*KeyError: 'split'", second.stderr), second.stderr
    assert "Traceback" not in first.stderr, first.stderr


@pytest.mark.slow
@pytest.mark.parametrize("fault_in", ["loader", "loss", "save", "worker"])
def test_a_bug_is_reported_under_a_launcher(fault_in: str, tmp_path: Path) -> None:
    overrides = overrides_of("bug", tmp_path, fault_in)

    check_bug(tmp_path, with_launcher("torchrun", fault_in, overrides, tmp_path))


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    overrides = [*overrides_of("full", tmp_path), "checkpoint.interval=4"]

    first, second = with_ranks(overrides, 2, program=partial(patched_program, "full disk"))

    assert (first.returncode, second.returncode) == (76, 76)
    assert (first.stderr + second.stderr).count("No space left on device") == 1, first.stderr
    assert "Free space there, or set paths.runs" in first.stderr + second.stderr
    marker = json.loads((tmp_path / "runs" / "full" / "stopped").read_text())
    assert (marker["status"], marker["saved"], marker["step"]) == (76, False, None)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_full_disk_is_one_message_under_a_launcher(launcher: str, tmp_path: Path) -> None:
    overrides = [*overrides_of("full", tmp_path), "checkpoint.interval=4"]

    done = with_launcher(launcher, "full disk", overrides, tmp_path)

    assert done.returncode != 0
    assert done.stderr.count("No space left on device") == 1, done.stderr


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("deepspeed", marks=SLOW)])
def test_a_wrong_key_is_one_message_also_when_rank_0_is_slow(launcher: str, tmp_path: Path) -> None:
    done = with_launcher(launcher, "slow", ["experiment=tiny", "model.num_layer=3"], tmp_path)

    assert done.returncode != 0
    assert done.stderr.count("ConfigError: ") == 1, done.stderr
    assert "model.num_layer" in done.stderr
