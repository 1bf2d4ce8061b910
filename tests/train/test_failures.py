"""A bug stays a bug on a cluster: traceback where it happened, its rank named elsewhere, status 1.

A mistake of the user stays one message, whichever rank is fastest.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.jobs import BIN, ROOT, free_port, make_files, start

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


def patched(
    folder: Path, patch: str, overrides: list[str], launcher: str
) -> subprocess.CompletedProcess[str]:
    """Run two ranks of a program that is train.py after a patch."""
    program = folder / f"{patch.replace(' ', '_')}_{launcher}.py"
    program.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nrank = int(os.environ['RANK'])\n"
        f"{PATCHES[patch]}\nfrom glm_dist.cli.main import main_train\nsys.exit(main_train())\n"
    )
    port = str(free_port())
    if launcher == "deepspeed":
        command = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", port]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        command += [f"--master-port={port}"]
    return start([*command, str(program), *overrides])


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "place",
    ["loss", "save", pytest.param("loader", marks=SLOW), pytest.param("worker", marks=SLOW)],
)
def test_a_bug_keeps_its_traceback_and_the_others_name_its_rank(place: str, tmp_path: Path) -> None:
    overrides = [*make_files(tmp_path), "run.name=bug", "parallel=dp2", "batch.micro_batch_size=1"]
    if place == "worker":
        overrides.append("data.num_workers=1")

    done = patched(tmp_path, place, overrides, "torchrun")

    logs = [
        (tmp_path / "runs" / "bug" / "log" / f"rank_{rank:04d}.log").read_text() for rank in (0, 1)
    ]
    assert done.returncode == 1
    assert re.search(r"(?s)Traceback .*\n\S*KeyError: 'split'", logs[1]), logs[1]
    assert done.stderr.count('{}["split"]') >= 1, done.stderr
    assert "Traceback" not in logs[0], logs[0]
    named = r"rank 1 on \S+ failed: KeyError: .*log/rank_0001\.log"
    assert re.search(named, logs[0]), logs[0]
    assert re.search(named, done.stderr), done.stderr
    assert "Fix:" not in done.stderr


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("deepspeed", marks=SLOW)])
def test_a_full_disk_is_one_message(launcher: str, tmp_path: Path) -> None:
    overrides = [*make_files(tmp_path), "run.name=full", "parallel=tp2"]

    done = patched(tmp_path, "full disk", overrides, launcher)

    assert done.returncode != 0
    assert done.stderr.count("No space left on device") == 1, done.stderr
    assert "Free space there, or set paths.runs" in done.stderr


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("deepspeed", marks=SLOW)])
def test_a_wrong_key_is_one_message_also_when_rank_0_is_slow(launcher: str, tmp_path: Path) -> None:
    done = patched(tmp_path, "slow", ["experiment=tiny", "model.num_layer=3"], launcher)

    assert done.returncode != 0
    assert done.stderr.count("ConfigError: ") == 1, done.stderr
    assert "model.num_layer" in done.stderr
