"""The CPU benchmarks run through on the smallest shapes and leave their tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import attention

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


def test_the_attention_of_gpus_runs_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton", reason="Triton has no build for this machine")

    attention.main(["--dry-run", "--tune", "--threads", "1", "--output", str(tmp_path)])

    rows = json.loads((tmp_path / "attention.json").read_text())["rows"]
    # Two prefixes, with and without dropout, by our kernels, tuned ones and torch's.
    assert [row["what"] for row in rows] == 4 * ["ours", "ours, tuned", "torch, bias"]
    assert all(row["both, ms"] > 0 and "note" not in row for row in rows)
    assert '("queries", 4, 16): Blocks(queries=128' in capsys.readouterr().out


def test_operations_are_counted_on_the_pairs_of_the_mask() -> None:
    attention_gpu = pytest.importorskip("benchmarks.attention_gpu")
    shape = attention_gpu.Shape("small", 1, 3, 10, 16)  # its only prefix is 5 - 4 = 1

    # Position 0 is seen by all 10, the others by 9 to 1: 55 pairs, 4 * 16 operations, 3 heads.
    assert shape.operations(0.5) == 55 * 64 * 3
