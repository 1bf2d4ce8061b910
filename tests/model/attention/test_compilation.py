"""The kernels compile for Ampere and Hopper, without a GPU, and fit their shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no build for this machine")

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize(("dtype", "heads"), [("bf16", "64,128,256"), ("fp32", "64")])
def test_kernels_compile_and_fit(tmp_path: Path, dtype: str, heads: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.model.attention.compile_kernels",
            dtype,
            heads,
        ],
        env=kept | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )

    assert run.returncode == 0, run.stderr[-3000:]
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    # Three kernels, with and without dropout, for two GPUs.
    assert len(found) == 12 * len(heads.split(","))
    for kernel in found:
        assert kernel["shared"] <= kernel["estimate"] <= kernel["allowed"], kernel
