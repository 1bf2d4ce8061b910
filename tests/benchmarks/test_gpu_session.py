"""The script for a GPU that is there for a short time keeps to its limits, and to its results."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.jobs import ROOT, clean_environment

SCRIPT = ROOT / "benchmarks" / "gpu_session.sh"
FAKE_PYTHON = """#!/usr/bin/env bash
echo "python $*"
case "$*" in
"-m pytest"*) exec sleep 60 ;;
"-m benchmarks.gpu"*) echo '{}' >"$OUT/gpu.json"; exit 3 ;;
"-m pip"*) touch "$OUT/installed" ;;
*) echo "path $PYTHONPATH" ;;
esac
"""


def session(out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT)],
        env=clean_environment(OUT=str(out), **variables),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_a_part_that_hangs_or_fails_does_not_lose_the_others(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "library-1-py3-none-any.whl").touch()
    started = time.monotonic()

    run = session(
        tmp_path, PYTHON=str(python), WHEELS=str(wheels), TESTS_SECONDS="1", PYTHONPATH="/before"
    )

    assert time.monotonic() - started < 50
    assert run.returncode == 1
    states = [line for line in run.stdout.splitlines() if line.startswith("== ")]
    assert [line.partition(" s, ")[2] for line in states[:-1]] == [
        "exit status 0",
        "exit status 124",
        "exit status 3",
        "exit status 0",
    ]
    assert (tmp_path / "gpu.json").exists()
    assert (tmp_path / "installed").exists()
    log = (tmp_path / "session.txt").read_text()
    assert "--no-index --find-links" in log
    assert "-m gpu tests/gpu" in log
    assert re.search(r"--minutes 7\.[0-5]", log)  # 9 without 1 s, 60 s and 25 s
    assert log.rstrip().splitlines()[-3].endswith(":/before")  # the wheels come first


def test_no_part_begins_after_the_last_minute(tmp_path: Path) -> None:
    run = session(tmp_path, PYTHON="false", MINUTES="0")

    assert run.returncode == 1
    assert run.stdout.count("not run, no time is left") == 3


@pytest.mark.slow
def test_the_script_runs_dry(tmp_path: Path) -> None:
    run = session(tmp_path, PYTHON=sys.executable, DRY_RUN="1", ATTENTION_SECONDS="240")

    log = (tmp_path / "session.txt").read_text()
    assert run.returncode == 0, log[-3000:]
    assert "passed" in log or "skipped" in log
    assert {"gpu_dry_run.json", "gpu_dry_run.md", "attention.json"} <= set(os.listdir(tmp_path))
