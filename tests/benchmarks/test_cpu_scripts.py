"""The CPU benchmarks run through on the smallest shapes and leave their tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--model", "tiny", "--rows", "1", "--row-length", "64"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "table", "num_rows"),
    [
        ("attention", [], "attention", 4),
        ("step", [*SMALL, "--micro-batches", "2"], "step_tiny", 3),
        ("memory", SMALL, "memory_tiny", 5),
        ("layouts", [*SMALL, "--micro-batches", "2"], "layouts_tiny", 4),
        ("checkpoint_stall", ["--layers", "1", "--saves", "1"], "checkpoint_stall", 1),
        ("option_costs", [*SMALL, "--only", "zero=stage3"], "option_costs_tiny", 1),
    ],
)
def test_the_script_leaves_its_table(
    tmp_path: Path, script: str, arguments: list[str], table: str, num_rows: int
) -> None:
    command = [sys.executable, "-m", f"benchmarks.{script}", *arguments, "--threads", "1"]
    run = subprocess.run(
        [*command, "--rounds", "1", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )

    assert run.returncode == 0, run.stderr[-3000:]
    record = json.loads((tmp_path / f"{table}.json").read_text())
    assert len(record["rows"]) == num_rows
    assert record["command"].startswith(f"python -m benchmarks.{script}")
    assert (tmp_path / f"{table}.md").read_text().count("\n| ") == num_rows + 2  # head and rule
