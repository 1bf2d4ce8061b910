"""One rank of a job of hundreds of processes, built on this machine without its memory."""

import re
import resource
import subprocess
import sys
import time

import pytest

from glm_dist.cli.main import main

GLM_130B = ("experiment=glm_130b", "--processes", "768")
GLM_10B = ("experiment=glm_10b", "batch.global_batch_size=10752", "--processes", "512")


def _parts(output: str) -> dict[str, tuple[float, float]]:
    """Built and planned figure of each part, in the same unit."""
    line = r"^(\w+) +([\d.]+) (\wiB), planned ([\d.]+) \3$"
    found = re.findall(line, output, re.MULTILINE)
    return {name: (float(built), float(planned)) for name, built, _, planned in found}


def test_the_last_rank_of_768_holds_what_is_planned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["dryrun", *GLM_130B, "--rank", "767"]) == 0
    output = capsys.readouterr().out
    assert "767 of 768: tensor 3 of 4, stage 7 of 8, replica 23 of 24" in output
    assert "62 to 69 of 0 to 69" in output
    # A quarter of the padded vocabulary, and of both halves of the MLP's input.
    assert "1 x embedding.word_embeddings.weight [37632, 12288]" in output
    assert "8 x mlp.linear_fc1.weight [16384, 12288]" in output
    parts = _parts(output)
    assert set(parts) == {"weights", "gradients", "optimizer", "activations"}
    for built, planned in parts.values():
        assert built == pytest.approx(planned, rel=0.001), parts


def test_a_rank_beyond_the_job_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dryrun", *GLM_130B, "--rank", "768"]) == 2
    assert "a job of 768 processes has ranks 0 to 767" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "rank"),
    [(GLM_10B, 0), (GLM_10B, 256), (GLM_10B, 511), (GLM_130B, 0), (GLM_130B, 384)],
)
def test_any_rank_takes_less_than_a_minute_and_8_gib(job: tuple[str, ...], rank: int) -> None:
    started = time.monotonic()
    command = [sys.executable, "-m", "glm_dist", "dryrun", *job, "--rank", str(rank)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert time.monotonic() - started < 60
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 8 << 20  # KiB
    for built, planned in _parts(output).values():
        assert built == pytest.approx(planned, rel=0.03)
