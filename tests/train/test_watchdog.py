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
    if rank == target and len(calls) == 12:
        subprocess.Popen(["sh", "-c", f"sleep 15; kill -KILL {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
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
    names = {"rank": int(os.environ["RANK"]), "os": os, "signal": signal, "target": target, "subprocess": subprocess}
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
        "evaluation.interval=100",
        "checkpoint.interval=4",
        f"watchdog.floor_seconds={LIMIT}",
        f"watchdog.first_minutes={LIMIT / 60}",
    ]


def end_of(folder: Path, patch: str, layout: str, processes: int, target: int = 1):
    folder.mkdir()
    begin = time.monotonic()
    done = with_ranks(overrides_of(folder, layout), processes, program=partial(patched_program, patch, target))
    return done, time.monotonic() - begin


if __name__ == "__main__":
    import tempfile
    from concurrent.futures import ThreadPoolExecutor
    top = Path(tempfile.mkdtemp())
    t = time.time()
    cases = [c.split(",") for c in sys.argv[1:]]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(end_of, top / f"{i}", c[0], c[1], int(c[2]), int(c[3]) if c[3:] else 1) for i, c in enumerate(cases)]
        for c, (i, job) in zip(cases, enumerate(jobs)):
            print("=====", c)
            try:
                done, seconds = job.result()
            except BaseException as error:
                print("FAILED", repr(error)[:300]); continue
            print(round(seconds, 1), [d.returncode for d in done])
            for d in done: print(time.ctime(), "   ", *[l for l in d.stderr.splitlines() if "INFO" not in l][-6:], sep="\n    ")
    print(time.time() - t, top)
