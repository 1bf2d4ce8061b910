"""GLM-2B there and back: weights pass through without being held in memory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glm_dist.convert.official import official_model, official_parameters
from glm_dist.convert.spill import Spill
from tests.convert.official_files import write_vocabulary

LAYERS, HIDDEN, POSITIONS, ROWS = 36, 2048, 1024, 50304
GIB = 2**30

# RssAnon is what a process holds; pages of mapped files can be dropped by the system.
PROGRAM = """
import json, re, sys, threading, time
from pathlib import Path
from glm_dist.cli.main import main
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.01):
        status = Path("/proc/self/status").read_text()
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]) * 1024)
thread = threading.Thread(target=watch)
thread.start()
started = time.monotonic()
status = main(sys.argv[1:])
done.set()
thread.join()
print(json.dumps({"status": status, "peak": peak, "seconds": time.monotonic() - started}))
"""


def convert(*arguments: object) -> dict[str, float]:
    """Run the command in a process; its status and peak."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "convert", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(done.stdout)
    assert measured["status"] == 0, done.stderr
    return measured


def two_billion(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights of the shapes of GLM-2B, on disk: one block of draws, again and again."""
    block = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    spill = Spill(folder)
    model = official_model(num_layers=LAYERS, hidden_size=HIDDEN, max_position_embeddings=POSITIONS)
    for number, each in enumerate(official_parameters(model, ROWS)):
        repeats = -(-each.spec.size // block.numel())
        values = block.roll(number).repeat(repeats)[: each.spec.size]
        yield each.name, spill.keep(values.view(each.shape))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_billion_parameters_pass_through_less_than_a_gibibyte(tmp_path: Path) -> None:
    source, run, back = tmp_path / "glm" / "7", tmp_path / "run", tmp_path / "back"
    source.mkdir(parents=True)
    file = source / "mp_rank_00_model_states.pt"
    torch.save({"module": dict(two_billion(tmp_path)), "iteration": 7}, file)
    assert file.stat().st_size > 3.5 * GIB
    tokenizer = write_vocabulary(tmp_path, ROWS)

    there = convert(source.parent, run, f"tokenizer.path={tokenizer}")
    again = convert(run, back, "--to", "official", "--model-parallel-size", "2")

    print(f"peak {there['peak'] / GIB:.2f} and {again['peak'] / GIB:.2f} GiB")
    assert there["peak"] < GIB
    assert again["peak"] < GIB
