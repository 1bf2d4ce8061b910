"""The account of a run that was killed twice and preempted once covers the time on a stopwatch."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from glm_dist.cli.main import main_train
from glm_dist.observe.metrics_file import sound_records
from tests.ranks import Programs, started_programs
from tests.train.jobs import make_files, rank_environments

STEPS = 40
TOLERANCE = 0.01
"""Share of the wall time that the account may miss."""

DELAY = 0.1
"""Seconds by which a busy machine may start a process or write a file late."""


def wait_for_step(run: Path, step: int, job: Programs) -> None:
    """Wait until a step is recorded."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(r["step"] >= step for r in sound_records(run / "metrics.jsonl")):
            return
        assert job.processes[0].exitcode is None, job.results()[0].stderr
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.parametrize("layout", ["dp2", pytest.param("pp2", marks=pytest.mark.slow)])
def test_buckets_add_up_over_kills_and_a_preemption(layout: str, tmp_path: Path) -> None:
    overrides = [
        *make_files(tmp_path),
        f"parallel={layout}",
        "run.name=a",
        f"run.steps={STEPS}",
        f"lr_schedule.decay_steps={STEPS}",
        "checkpoint.interval=5",
        "evaluation.interval=20",
    ]
    run = tmp_path / "runs" / "a"
    down = started = 0.0
    asked = time.time()
    for step, number in ((8, signal.SIGKILL), (13, signal.SIGKILL), (22, signal.SIGTERM)):
        with started_programs(main_train, ["train.py", *overrides], rank_environments(2)) as job:
            started = started or time.time()
            wait_for_step(run, step, job)
            for process in job.processes:
                assert process.pid is not None
                os.kill(process.pid, number)
            killed = time.time()
            assert not job.wait(60)
            codes = [process.exitcode for process in job.processes]
        assert codes == ([-number] * 2 if number == signal.SIGKILL else [75, 75])
        if number == signal.SIGTERM:
            killed = (run / "goodput.json").stat().st_mtime
        down -= killed
        down += time.time()
    with started_programs(main_train, ["train.py", *overrides], rank_environments(2)) as job:
        assert not job.wait(120)
        last = job.results()[0]
    assert last.returncode == 0, last.stderr
    ended = (run / "goodput.json").stat().st_mtime
    wall = ended - started

    found = json.loads((run / "goodput.json").read_text())
    seconds = found["seconds"]
    print(f"{layout}: stopwatch {wall:.2f} s, sum {sum(seconds.values()):.2f} s, {found}")
    assert found["attempts"] == 4
    # The first process began after it was asked for, and before it was known to have started.
    margin = TOLERANCE * wall + DELAY
    assert wall - margin <= sum(seconds.values()) <= ended - asked + margin
    assert all(x >= -0.01 for x in seconds.values())
    # A kill comes at most a step after the last line; a process starts right after its request.
    assert seconds["down"] == pytest.approx(down, abs=0.05 * wall + 3 * DELAY)
    assert seconds["other"] < 0.1 * wall
    records = [r for r in sound_records(run / "metrics.jsonl") if "train/loss" in r]
    assert max(Counter(r["step"] for r in records).values()) > 1  # some steps were repeated
    assert seconds["lost_steps"] > 0
    assert "goodput of" in last.stderr
