"""The comparison for a GPU runs on any machine at a toy size, by its script and experiment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks.compare.toys import make_comparison
from tests.train.jobs import ROOT, clean_environment

KEPT = ("experiment=", "compare.", "run.", "paths.", "model", "tokenizer", "data", "batch")


@pytest.mark.slow
def test_the_script_of_the_gpu_runs_dry(tmp_path: Path) -> None:
    toy = [text for text in make_comparison(tmp_path) if text.startswith(KEPT)]
    run = subprocess.run(
        [str(ROOT / "benchmarks" / "compare_objectives_gpu.sh"), *toy],
        env=clean_environment(PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    table = json.loads((tmp_path / "runs" / "toy" / "table.json").read_text())
    assert [cell["task"] for cell in table["cells"]] == ["ending"] * 6
    assert "seconds:" in run.stderr
    assert "dtype=bf16" in run.stderr
