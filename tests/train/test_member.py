"""Several runs in one process: each equals the same run in a process by itself, bit by bit."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from glm_dist.config.launch import read_launch_environment
from glm_dist.config.load import load_config
from glm_dist.stop_signals import StopListener
from glm_dist.train.job import train_run
from glm_dist.train.member import Member, as_member
from tests.ranks import run_programs
from tests.train.jobs import make_files, rank_environments
from tests.train.test_job import losses_of, weights_of

DROPOUT = ["model.hidden_dropout=0.1", "model.attention_dropout=0.1"]
"""Shows random numbers that a run would take over from the one before."""

FIRST = ["model.num_layers=3", "run.seed=7", "zero=stage2", "optimizer.learning_rate=1e-2"]
"""Another model, whose run a later one must not notice."""


def train_several() -> int:
    """Train the runs of the command line, each a list of overrides, in this process."""
    configs = [load_config(overrides) for overrides in json.loads(sys.argv[1])]

    def work(member: Member) -> int:
        return max(train_run(config, member) for config in configs)

    return as_member(
        work,
        read_launch_environment(os.environ),
        timeout=timedelta(minutes=1),
        watchdog=configs[0].watchdog,
        listener=StopListener(),
    )


def start(runs: list[list[str]], processes: int) -> None:
    results = run_programs(train_several, ["train", json.dumps(runs)], rank_environments(processes))
    assert all(result.returncode == 0 for result in results), results[0].stderr


@pytest.mark.parametrize(
    ("processes", "zero"),
    [
        pytest.param(1, "stage1", marks=pytest.mark.slow),
        (2, "stage3"),
        pytest.param(2, "stage0", marks=pytest.mark.slow),
        pytest.param(2, "stage2", marks=pytest.mark.slow),
    ],
)
def test_a_later_run_of_a_process_equals_the_run_alone(
    tmp_path: Path, processes: int, zero: str
) -> None:
    runs = tmp_path / "runs"
    common = [*make_files(tmp_path), *DROPOUT]
    later = [*common, f"zero={zero}"]
    together = [[*common, *FIRST, "run.name=first"], [*later, "run.name=later"]]
    start(together, processes)
    start([[*later, "run.name=alone"]], processes)

    alone = weights_of(runs / "alone")
    assert alone
    for key, found in weights_of(runs / "later").items():
        assert np.array_equal(found, alone[key]), key
    assert losses_of(runs / "later") == losses_of(runs / "alone")
    # The folder, the log and the account of time of each run are its own.
    for run in ("first", "later"):
        log = (runs / run / "log" / "rank_0000.log").read_text()
        assert log.count("training run=") == 1
        assert f"training run={runs / run} " in log
    assert process_started(runs / "later") >= (runs / "first" / "finished").stat().st_mtime - 0.01


def process_started(run: Path) -> float:
    """Start of a run's process by its records."""
    first = json.loads((run / "metrics.jsonl").read_text().partition("\n")[0])
    return float(first["process_started"])
