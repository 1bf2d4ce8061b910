"""``glm-dist sweep`` as users call it; a stub takes the place of training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from glm_dist.cli.main import main, run_command
from glm_dist.config.load import dump_config, load_config
from glm_dist.stop_signals import StopListener
from tests.messages import Says
from tests.ranks import run_programs, started_programs
from tests.train.jobs import ROOT, clean_environment, make_files

STUB = ROOT / "tests/sweep/stub.py"
NAMES = [f"s-learning_rate_{rate}-seed_{seed}" for rate in ("1e-3", "2e-3") for seed in (1, 2)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a tiny run, whose data exist."""
    folder = tmp_path_factory.mktemp("files")
    return [*make_files(folder), "parallel=single", "precision=fp32", "run.steps=2"]


@pytest.fixture
def sweep(files: list[str], tmp_path: Path) -> list[str]:
    """Command line of four points with the stub."""
    config = tmp_path / "template.yaml"
    config.write_text(dump_config(load_config([*files, "run.name=template"])))
    fixed = [text for text in files if not text.startswith(("paths.runs", "optimizer"))]
    return [
        *("glm-dist", "sweep", "--jobs", "2", "--launcher", f"{sys.executable} {STUB} {config}"),
        *("train", *fixed, f"paths.runs={tmp_path / 'runs'}", "run.name=s"),
        *("optimizer.learning_rate=1e-3,2e-3", "run.seed=1,2"),
    ]


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """``glm-dist`` in this process, where nobody asks to stop."""

    def call(command: list[str], **variables: str) -> Done:
        listener = Mock(spec=StopListener, code=0)
        listener.wait.side_effect = lambda seconds: time.sleep(0.05)
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            status = run_command("sweep", command[2:], prog="glm-dist sweep", listener=listener)
        written = capsys.readouterr()
        return Done(status, written.out, written.err)

    return call


def _calls(runs: Path) -> dict[str, int]:
    """Times that each run was started."""
    return {
        each.parent.name: len(each.read_text().splitlines())
        for each in sorted(runs.glob("*/calls"))
    }


def _table(runs: Path) -> list[dict[str, Any]]:
    (group,) = json.loads((runs / "s.sweep/sweep.json").read_text())["groups"]
    return list(group["rows"])


def test_all_points_run_once_and_are_compared_over_seeds(
    sweep: list[str], tmp_path: Path, run: Callable[..., Done]
) -> None:
    runs = tmp_path / "runs"
    done = run(sweep)
    assert done.returncode == 0, done.stderr
    assert _calls(runs) == dict.fromkeys(NAMES, 1)
    assert "finished  s-learning_rate_2e-3-seed_2: validation loss 4.8200 (" in done.stderr
    # The stub's loss is 5 - 100 rate + 0.01 seed: 4.91 and 4.92, then 0.1 lower for both seeds.
    first, second = _table(runs)
    assert first["valid"]["value"] == pytest.approx(4.915)
    assert first["valid"]["high"] == pytest.approx(4.915 + 12.706 * 0.005, abs=1e-4)
    assert (first["is_baseline"], second["is_best"]) == (True, True)
    assert second["difference"]["value"] == pytest.approx(-0.1)
    assert second["is_separated"]
    line = (
        "| 2e-3 | 4.8150 | 4.7515 to 4.8785 | 2 | best | -0.1000 | -0.1000 to -0.1000 | separated |"
    )
    assert line in (runs / "s.sweep/sweep.md").read_text().splitlines()
    assert "separated" in done.stdout

    again = run(sweep)
    assert again.returncode == 0
    assert again.stderr == "checking 4 points\n4 of 4 points are finished\n"
    assert again.stdout == done.stdout
    assert _calls(runs) == dict.fromkeys(NAMES, 1)

    other = run([*sweep, "batch.global_batch_size=8"])
    assert other.returncode == 2
    assert "batch.global_batch_size=4, now 8" in other.stderr


def test_failed_point_leaves_the_others_alone_and_shows_in_the_status(
    sweep: list[str], tmp_path: Path, run: Callable[..., Done]
) -> None:
    runs = tmp_path / "runs"
    done = run(sweep, FAILS="2e-3-seed_1")
    assert done.returncode == 1
    assert _calls(runs) == dict.fromkeys(NAMES, 1)
    assert (
        "failed    s-learning_rate_2e-3-seed_1: status 2: rank 0: DataError: the corpus is gone.;"
        f" see {runs / NAMES[2] / 'output.log'}"
    ) in done.stderr
    assert "Not counted: s-learning_rate_2e-3-seed_1 (failed)." in done.stdout
    _, second = _table(runs)
    assert (second["seeds"], second["pairs"]) == (1, 1)
    assert second["difference"] == {"value": pytest.approx(-0.1), "low": None, "high": None}

    again = run(sweep)
    assert again.returncode == 0
    assert _calls(runs) == dict.fromkeys(NAMES, 1) | {NAMES[2]: 2}


def test_stop_request_reaches_the_points_and_says_how_to_go_on(
    sweep: list[str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with started_programs(main, sweep, [clean_environment(HANGS="seed")]) as programs:
        deadline = time.monotonic() + 60
        while len(_calls(runs)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(programs.processes[0].pid or 0, signal.SIGTERM)
        assert not programs.wait(60)
        (done,) = programs.results()
    assert done.returncode == 75
    assert _calls(runs) == dict.fromkeys(NAMES[:2], 1)
    assert done.stderr.endswith("stopped by SIGTERM; the same command goes on\n")
    assert done.stderr.count("stopped on request") == 2
    assert done.stderr.count("started") == 2


@pytest.mark.parametrize(
    ("more", "variables"),
    [
        pytest.param(["optimiser.weight_decay=1"], {}, id="key"),
        pytest.param(["optimizer.weight_decay=0.1,two"], {}, id="value of one point"),
        pytest.param(["evaluation.interval=0"], {}, id="no validation"),
        pytest.param(["--baseline", "run.steps=3"], {}, id="baseline"),
        pytest.param(["--metric", "accuracy"], {}, id="metric"),
        pytest.param([f"run.name={200 * 'n'}"], {}, id="long name"),
        pytest.param(["--sbatch=-p a"], {}, id="ignored option"),
        pytest.param(["--slurm"], {"PATH": "/nowhere"}, id="no cluster"),
        pytest.param(["--launcher", "torchrun '"], {}, id="no launcher"),
        pytest.param(["--launcher", "torchran -n 2"], {}, id="unknown launcher"),
        pytest.param([], {"RANK": "0", "WORLD_SIZE": "2"}, id="in a job"),
    ],
)
def test_sweep_that_cannot_work_starts_nothing(
    more: list[str],
    variables: dict[str, str],
    sweep: list[str],
    tmp_path: Path,
    run: Callable[..., Done],
    says: Says,
) -> None:
    if "--slurm" in more:
        sweep = [*sweep[:2], *sweep[6:]]  # without jobs and launcher
    if "RANK" in variables:
        variables |= {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = run([*sweep, *more], **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert not _calls(tmp_path / "runs")
    says(done.stderr)


def test_dry_run_prints_a_command_for_each_point(
    sweep: list[str], tmp_path: Path, run: Callable[..., Done]
) -> None:
    done = run([*sweep, "--dry-run"])
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"{sys.executable} {STUB} ")
    assert lines[3].endswith(f" run.seed=2 run.name={NAMES[3]}")
    assert not _calls(tmp_path / "runs")


FAKE_SBATCH = '#!/bin/sh\necho "Submitted batch job 7"\nfor word; do echo "$word"; done >"$NOTES"\n'


def test_slurm_gets_one_array_of_the_points_that_are_left(
    sweep: list[str], tmp_path: Path, run: Callable[..., Done]
) -> None:
    runs, notes = tmp_path / "runs", tmp_path / "notes"
    run(sweep, FAILS="1e-3-seed_2")
    shutil.rmtree(runs / NAMES[3])
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "sbatch").write_text(FAKE_SBATCH)
    (binaries / "sbatch").chmod(0o755)
    command = [*sweep[:4], "--slurm", "--sbatch=--partition=gpu", *sweep[6:]]
    path = f"{binaries}:{os.environ['PATH']}"
    done = run(command, NOTES=str(notes), PATH=path)
    assert done.returncode == 0, done.stderr
    assert "Submitted batch job 7" in done.stderr
    array, partition, script, points = notes.read_text().splitlines()
    assert (array, partition) == ("--array=1,3%2", "--partition=gpu")
    assert script == "launchers/sweep.sh"
    # What a task of the array would run:
    task = subprocess.run(
        ["bash", script, points],
        cwd=ROOT,
        env={"PATH": path, "DRY_RUN": "1", "PYTHON": sys.executable, "SLURM_ARRAY_TASK_ID": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    command = f"\nsrun --export=ALL --kill-on-bad-exit=1 --cpus-per-task=8 {sys.executable} -m"
    assert f"{command} glm_dist train model=tiny" in task.stdout
    assert task.stdout.endswith(f" run.name={NAMES[3]}\n")


@pytest.mark.slow
def test_points_train_and_an_interrupted_sweep_goes_on(files: list[str], tmp_path: Path) -> None:
    fixed = [text for text in files if not text.startswith(("paths.runs", "run.steps"))]
    command = ["glm-dist", "sweep", "--jobs", "2", "train", *fixed, f"paths.runs={tmp_path}"]
    command += ["run.name=s", "run.steps=400", "checkpoint.interval=400", "run.seed=1,2"]
    with started_programs(main, command, [clean_environment()]) as programs:
        deadline = time.monotonic() + 120
        while len([*tmp_path.glob("*/metrics.jsonl")]) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(programs.processes[0].pid or 0, signal.SIGTERM)
        assert not programs.wait(120)
        (stopped,) = programs.results()
    assert stopped.returncode == 75, stopped.stderr
    (done,) = run_programs(main, command, [clean_environment()])
    assert done.returncode == 0, done.stderr
    for seed in (1, 2):
        attempts = json.loads((tmp_path / f"s-seed_{seed}/provenance.json").read_text())
        assert len(attempts["attempts"]) == 2
    (row,) = _table(tmp_path)
    assert row["seeds"] == 2
