"""A rank that hangs, is stopped or dies ends the whole job within seconds, and is named."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from glm_dist.cli.main import main_train
from tests.train.jobs import (
    ROOT,
    clean_environment,
    free_port,
    make_files,
    start,
    with_ranks,
)

SLOW = pytest.mark.slow

FOREVER = "__import__('time').sleep(1000)"

PATCHES = {
    "start": f"""
from glm_dist.train import job
kept = job.open_row_source
def broken(*arguments):
    if rank == 1: {FOREVER}
    return kept(*arguments)
job.open_row_source = broken
""",
    "data": f"""
from glm_dist.data.loader import TrainingBatches
kept, calls = TrainingBatches.__next__, []
def broken(self):
    calls.append(1)
    if rank == 1 and len(calls) == 6: {FOREVER}
    return kept(self)
TrainingBatches.__next__ = broken
""",
    "forward": f"""
from glm_dist.train.task import Pretraining
kept, calls = Pretraining.loss, []
def broken(self, *arguments):
    calls.append(1)
    if rank == 1 and len(calls) == 12: {FOREVER}
    return kept(self, *arguments)
Pretraining.loss = broken
""",
    "stopped": """
from glm_dist.train.task import Pretraining
kept, calls = Pretraining.loss, []
def broken(self, *arguments):
    calls.append(1)
    if rank == target and len(calls) == 12: os.kill(os.getpid(), signal.SIGSTOP)
    return kept(self, *arguments)
Pretraining.loss = broken
""",
    "killed": """
from glm_dist.train.task import Pretraining
kept, calls = Pretraining.loss, []
def broken(self, *arguments):
    calls.append(1)
    if rank == target and len(calls) == 12: os.kill(os.getpid(), signal.SIGKILL)
    return kept(self, *arguments)
Pretraining.loss = broken
""",
    "exchange": f"""
import torch.distributed as dist
from glm_dist.train import step as module
kept, calls = dist.all_reduce, []
def broken(*arguments, **more):
    calls.append(1)
    if rank == 1 and len(calls) == 20: {FOREVER}
    return kept(*arguments, **more)
dist.all_reduce = broken
""",
    "validation": f"""
from glm_dist.train import evaluate
kept = evaluate.replica_rows
def broken(*arguments, **more):
    if rank == 1: {FOREVER}
    return kept(*arguments, **more)
evaluate.replica_rows = broken
""",
    "save": f"""
from glm_dist.checkpoint import storage
def broken(self, content):
    if rank == 1: {FOREVER}
storage._HashingStream.write = broken
""",
    "lock held": """
import ctypes
from glm_dist.train.task import Pretraining
kept, calls = Pretraining.loss, []
def broken(self, *arguments):
    calls.append(1)
    if rank == 1 and len(calls) == 12: ctypes.PyDLL(None).sleep(1000)
    return kept(self, *arguments)
Pretraining.loss = broken
""",
}


def patched_program(patch: str, target: int = 1) -> int:
    """``train.py`` after a patch."""
    names = {"rank": int(os.environ["RANK"]), "os": os, "signal": signal, "target": target}
    exec(PATCHES[patch], names)
    return main_train()


LIMIT = 3.0
"""Deadline in seconds of every phase."""


def overrides_of(folder: Path, layout: str = "dp2") -> list[str]:
    """A job whose phases have a deadline of ``LIMIT`` from their first time on."""
    return [
        *make_files(folder),
        "run.name=hang",
        f"parallel={layout}",
        "batch.micro_batch_size=1",
        "run.steps=8",
        "evaluation.interval=5",
        "checkpoint.interval=4",
        f"watchdog.floor_seconds={LIMIT}",
        f"watchdog.first_minutes={LIMIT / 60}",
    ]


if __name__ == "__main__":
    import tempfile
    folder = Path(tempfile.mkdtemp())
    patch, layout, n = sys.argv[1:4]
    t = time.time()
    for done in with_ranks(overrides_of(folder, layout), int(n), program=partial(patched_program, patch, int(sys.argv[4]) if sys.argv[4:] else 1)):
        print(done.returncode, done.stderr[-3000:])
    print(time.time() - t, folder)
    for f in sorted((folder / "runs/hang/log").glob("*")): print(f, f.read_text()[-1500:])
