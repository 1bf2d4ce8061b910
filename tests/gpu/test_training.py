"""Training on a GPU: every layout over NCCL, half precision, resume, and a run to the last word.

Several ranks share a GPU where there are fewer GPUs than ranks; NCCL then talks over the loopback.
"""

import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.generate.test_infill import check_cache
from tests.gpu.device import DEVICE
from tests.ranks import run_ranks
from tests.train.grid import ARCHITECTURE, Case, Trace, train_cases
from tests.train.jobs import make_files, start, with_python
from tests.train.test_layout_grid import TOLERANCE, default_cases_of, differences
from tests.train.test_resume import END, STOP, resume, save_and_go_on

WEIGHT_TOLERANCE = 1e-4
"""A tenth of one update of AdamW at the cases' rate. Where a gradient is all rounding, its sign is
too, and AdamW divides by its size: sums in another order move such a weight."""

OPTIONS = {
    1: [
        Case(zero=1, micro_batch=4, offload=True),
        Case(zero=0, micro_batch=4, recompute="full"),
        Case(zero=0, micro_batch=4, recompute="selective"),
    ],
    2: [
        Case(tp=2, zero=1, micro_batch=2, sp=True),
        Case(pp=2, zero=1, micro_batch=2, vp=2),
        Case(dp=2, zero=2, micro_batch=4, offload=True),
        Case(tp=2, zero=3, micro_batch=4, recompute="full"),
    ],
    4: [
        Case(tp=2, pp=2, zero=1, micro_batch=2, sp=True, vp=2, recompute="selective"),
        Case(tp=2, dp=2, zero=3, micro_batch=4, sp=True),
    ],
}
"""Extra cases, added to every layout under every ZeRO stage, by number of ranks."""


@cache
def one_process(dtype: str = "fp32", device: str = DEVICE) -> Trace:
    """The whole batch at once, no ZeRO in fp32."""
    case = Case(micro_batch=16, dtype=dtype, zero=0 if dtype == "fp32" else 1)
    traces: list[Trace] = run_ranks(train_cases, [case], world_size=1, device=device)[0]
    return traces[0]


def assert_same(cases: Sequence[object], traces: list[Trace], expected: Trace) -> None:
    """Compare with a run of one process."""
    limits = (TOLERANCE, TOLERANCE, WEIGHT_TOLERANCE)
    wrong = []
    for case, trace in zip(cases, traces, strict=True):
        found = differences(trace, expected)
        if not all(a <= limit for a, limit in zip(found, limits, strict=True)):
            wrong.append(f"{case}: {found}")
    assert not wrong, "\n".join(wrong)


def test_one_gpu_trains_the_model_of_a_cpu() -> None:
    assert_same(["GPU"], [one_process()], one_process(device="cpu"))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_layout_trains_the_model_of_one_process(world_size: int) -> None:
    cases = [*default_cases_of(world_size), *OPTIONS[world_size]]

    traces = run_ranks(train_cases, cases, world_size=world_size, device=DEVICE, timeout=500)[0]

    assert_same(cases, traces, one_process())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_near_single_precision(dtype: str) -> None:
    found, expected = one_process(dtype), one_process()

    assert found.losses == pytest.approx(expected.losses, rel=1e-3)
    # 16-bit gradients: bf16 rounds each by up to 1 in 256, and most of it averages out.
    assert found.norms == pytest.approx(expected.norms, rel=2e-2)


def test_a_checkpoint_resumes_in_its_own_and_in_another_layout(tmp_path: Path) -> None:
    cut, sharded = Case(tp=2, zero=1, micro_batch=4), Case(dp=2, zero=3, micro_batch=4)
    half = Case(dp=2, zero=2, micro_batch=4, dtype="fp16")
    whole, _, whole_half = run_ranks(
        save_and_go_on, [cut, sharded, half], tmp_path, world_size=2, device=DEVICE
    )[0]
    assert len(whole.losses) == END - STOP

    pairs = [(cut, cut), (sharded, cut), (cut, sharded)]
    *traces, resumed_half = run_ranks(
        resume, [*pairs, (half, half)], tmp_path, world_size=2, device=DEVICE
    )[0]

    assert_same(list(pairs), traces, whole)
    assert resumed_half.losses == pytest.approx(whole_half.losses, rel=1e-3)


@pytest.mark.parametrize("architecture", [(), tuple(ARCHITECTURE)], ids=["GLM", "GLM-130B"])
def test_cached_answers_equal_uncached_ones(architecture: tuple[str, ...]) -> None:
    options = {key: value for name in architecture for key, value in ARCHITECTURE[name].items()}
    run_ranks(check_cache, options, world_size=1, device=DEVICE)


def test_a_run_trains_resumes_and_fills_blanks(tmp_path: Path) -> None:
    overrides = [*make_files(tmp_path), "run.name=gpu", "precision=bf16", "zero=stage1"]

    for steps in (2, 4):
        done = with_python([*overrides, f"run.steps={steps}"], device=DEVICE)
        assert done.returncode == 0, done.stderr
    assert re.search(r"steps=2\.\.4", done.stderr)
    filled = start(
        [
            *(sys.executable, "-m", "glm_dist"),
            "generate",
            "--greedy",
            str(tmp_path / "runs" / "gpu"),
            "w11 [MASK] w12",
        ],
        device=DEVICE,
    )

    assert filled.returncode == 0, filled.stderr
    assert filled.stdout.startswith("w11")
