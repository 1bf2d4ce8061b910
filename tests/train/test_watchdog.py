"""A rank that hangs, is stopped or dies ends the whole job within seconds, and is named."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from glm_dist.cli.main import main_train
from tests.train.jobs import ROOT, make_files, start, with_ranks

FOREVER = "__import__('time').sleep(1000)"

PATCHES = {
    "start": f"""
from glm_dist.train import workload
kept = workload.open_row_source
def broken(*arguments):
    if rank == 1: {FOREVER}
    return kept(*arguments)
workload.open_row_source = broken
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
        subprocess.Popen(["sh", "-c", f"sleep 11; kill -KILL {os.getpid()}"])
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
    "long validation": """
import time
from glm_dist.train.engine import TrainingEngine
kept = TrainingEngine.evaluate
def broken(self, batches):
    time.sleep(1.8)
    return kept(self, batches)
TrainingEngine.evaluate = broken
""",
    "slow": """
import time
from glm_dist.train.task import Pretraining
kept = Pretraining.loss
def broken(self, *arguments):
    time.sleep(0.05 if rank == target else 0.03)
    return kept(self, *arguments)
Pretraining.loss = broken
""",
    "even": """
import time
from glm_dist.train.task import Pretraining
kept, calls = Pretraining.loss, []
def broken(self, *arguments):
    calls.append(1)
    time.sleep(1.0 if len(calls) == 1 else 0.03)
    return kept(self, *arguments)
Pretraining.loss = broken
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
    names = {"rank": int(os.environ["RANK"]), "target": target}
    exec(PATCHES[patch], names | {"os": os, "signal": signal, "subprocess": subprocess})
    return main_train()


LIMIT = 4.0
"""Deadline in seconds of every phase."""


def overrides_of(folder: Path, layout: str, *, steps: int) -> list[str]:
    """A job whose phases have a deadline of ``LIMIT`` from their first time on."""
    return [
        *make_files(folder),
        "run.name=hang",
        f"parallel={layout}",
        "batch.micro_batch_size=1",
        f"run.steps={steps}",
        "evaluation.interval=100",
        "checkpoint.interval=4",
        "observe.log_interval=1",
        f"watchdog.floor_seconds={LIMIT}",
        f"watchdog.first_minutes={LIMIT / 60}",
    ]


@dataclass(frozen=True)
class Case:
    """A job of two ranks, one of which misbehaves."""

    patch: str
    says: str
    """Pattern of the one message on the consoles."""
    layout: str = "dp2"
    target: int = 1
    codes: tuple[int, int] = (1, 1)
    steps: int = 8
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.patch}, {self.layout}, rank {self.target}"


NAMED = (
    Case("data", r"rank 1 on \S+ has been in step 6 \(data\)"),
    Case("forward", r"rank 1 on \S+ has been in step 3 \(forward-backward\)", "pp2"),
    # A save in the background has a deadline of its own (tests/checkpoint/test_background.py).
    Case(
        "save", r"rank 1 on \S+ has been in step 4 \(save\)", more=("checkpoint.background=false",)
    ),
    Case("stopped", r"rank 0 on \S+ \(process \d+\) does not answer", "dp2", 0, (-9, 1)),
    Case("killed", r"rank 1 on \S+ left in step 6[ ,].*log/rank_0001.log", "dp2", 1, (1, -9)),
)
"""One of each kind."""

MORE = (
    Case("start", r"rank 1 on \S+ has been in start"),
    Case("forward", r"rank 1 on \S+ has been in step 6 \(forward-backward\)"),
    Case("forward", r"rank 1 on \S+ has been in step 3 \(forward-backward\)", "tp2"),
    Case("validation", r"rank 1 on \S+ has been in step 8 \(validate\)"),
    Case("exchange", r"rank 1 on \S+ has been in step \d \(\w+\)"),
    Case("lock held", r"rank 1 on \S+ \(process \d+\) does not answer"),
    Case("stopped", r"rank 1 on \S+ \(process \d+\) does not answer", "dp2", 1, (1, -9)),
    Case("killed", r"rank 0 on \S+ left in step 6[ ,].*log/rank_0000.log", "dp2", 0, (-9, 1)),
    Case("killed", r"rank 1 on \S+ left in step 3[ ,].*log/rank_0001.log", "pp2", 1, (1, -9)),
    Case("killed", r"rank 0 on \S+ left in step 3[ ,].*log/rank_0000.log", "tp2", 0, (-9, 1)),
)


def check(case: Case, folder: Path) -> None:
    """Run a job and compare its statuses, its message and the stacks in its logs."""
    folder.mkdir()
    done = with_ranks(
        [*overrides_of(folder, case.layout, steps=case.steps), *case.more],
        2,
        program=partial(patched_program, case.patch, case.target),
    )
    consoles = "".join(rank.stderr for rank in done)
    assert tuple(rank.returncode for rank in done) == case.codes, consoles
    lines = re.findall(r"ERROR (?:The job hangs: )?(rank .*)", consoles)
    assert len(lines) == 1, consoles
    assert re.match(case.says, lines[0]), lines[0]
    assert "Traceback" not in consoles, consoles
    for spent in re.findall(r"for (\d+) s;", lines[0]):
        assert LIMIT - 1 <= int(spent) <= LIMIT + 5, lines[0]
    if case.patch == "killed":
        return
    survivors = [rank for rank, code in enumerate(case.codes) if code == 1]
    for rank in survivors:
        text = (folder / "runs" / "hang" / "log" / f"rank_{rank:04d}.log").read_text()
        assert "(most recent call first)" in text


def test_a_rank_that_hangs_or_is_gone_is_named(tmp_path: Path) -> None:
    with ThreadPoolExecutor(len(NAMED)) as pool:  # side by side, since they mostly wait
        checks = [pool.submit(check, case, tmp_path / str(n)) for n, case in enumerate(NAMED)]
    for each in checks:
        each.result()


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=str)
def test_a_rank_is_named_in_every_phase_and_layout(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path / "job")


def test_a_slow_rank_is_named_within_20_steps_and_an_even_job_is_not(tmp_path: Path) -> None:
    def train(patch: str) -> tuple[list[int], str]:
        (tmp_path / patch).mkdir()
        overrides = overrides_of(tmp_path / patch, "dp2", steps=20)
        done = with_ranks(overrides, 2, program=partial(patched_program, patch))
        return [rank.returncode for rank in done], done[0].stderr

    with ThreadPoolExecutor(2) as pool:
        (slow_codes, slow), (even_codes, even) = pool.map(train, ("slow", "even"))

    assert (slow_codes, even_codes) == ([0, 0], [0, 0]), slow + even
    assert re.findall(r"WARNING slow rank=(\d) step=(?:10|15|20)", slow) == ["1"], slow
    assert "slow rank" not in even
    assert "hangs" not in slow + even


def test_a_long_validation_is_no_hang(tmp_path: Path) -> None:
    overrides = [*overrides_of(tmp_path, "dp2", steps=2), "evaluation.rows_per_objective=4"]
    done = with_ranks(overrides, 2, program=partial(patched_program, "long validation"))
    assert [rank.returncode for rank in done] == [0, 0], done[0].stderr
    found = json.loads((tmp_path / "runs" / "hang" / "goodput.json").read_text())
    assert found["seconds"]["validation"] > 1.25 * LIMIT


@pytest.mark.slow
def test_a_rank_killed_under_torchrun_is_started_again(tmp_path: Path) -> None:
    program = tmp_path / "killed_once.py"
    program.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.train.test_watchdog import main_train, patched_program\n"
        "first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "sys.exit(patched_program('killed') if first else main_train())\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += ["--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    overrides = [*overrides_of(tmp_path, "dp2", steps=8), "watchdog.first_minutes=1"]

    done = start([*torchrun, str(program), *overrides])

    assert done.returncode == 0, done.stderr[-3000:]
    assert "left in step 6" in done.stderr
    assert (tmp_path / "runs/hang/checkpoints/step_0000008/manifest.json").exists()
