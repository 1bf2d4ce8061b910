"""The GPU benchmark runs on any machine, so that it is ready for a machine with a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_dry(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--no-compile"]
    command += ["--rounds", "1", "--threads", "1", "--output", str(tmp_path)]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)

    assert run.returncode == 0, run.stderr[-3000:]
    record = json.loads((tmp_path / "gpu_dry_run.json").read_text())
    assert [row["what"] for row in record["rows"]] == [
        "GLM",
        "GLM, recompute selective",
        "GLM, recompute full",
        "GPTModel",
        "GPTModel, recompute full",
    ]
    for row in record["rows"]:
        assert row["tokens/s"] > 0
        assert row["useful TFLOP/s"] > 0
        assert "MFU" not in row or 0 < row["MFU"] < 1  # no peak is known for a CPU
    assert record["command"].startswith("python -m benchmarks.gpu")
    assert "load_at_start" in record["machine"]
    assert "| GPTModel |" in (tmp_path / "gpu_dry_run.md").read_text()
