"""Any layout finetunes the same model: loss, gradient norm and weights against one process."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import run_ranks
from tests.train.grid import Case
from tests.train.task_grid import (
    EXAMPLES,
    JOBS,
    Finetuned,
    plain_trace,
    resume_elsewhere,
    train_alone,
    train_jobs,
)
from tests.train.test_layout_grid import TOLERANCE, differences

STEPS = 3
ALONE = Case(layers=2, micro_batch=EXAMPLES)
LAYOUTS = {
    2: [
        Case(layers=2, tp=2, zero=1, micro_batch=2),
        Case(layers=2, tp=2, sp=True, micro_batch=4),
        Case(layers=2, pp=2, zero=1, micro_batch=2),
        Case(layers=2, dp=2, zero=1, micro_batch=4),
        Case(layers=2, dp=2, zero=2, micro_batch=1),
        Case(layers=2, dp=2, zero=3, micro_batch=2),
    ],
    4: [Case(layers=2, tp=2, dp=2, zero=1, sp=True, micro_batch=2)],
}


@cache
def one_process() -> dict[str, tuple[dict[str, np.ndarray], Finetuned]]:
    """First weights and results of each job in one process: no ZeRO, one micro-batch."""
    jobs = list(JOBS.values())
    return dict(zip(JOBS, run_ranks(train_alone, jobs, ALONE, STEPS, world_size=1)[0], strict=True))


@pytest.mark.parametrize("name", JOBS)
def test_one_process_finetunes_the_model_of_plain_torch(name: str) -> None:
    initial, found = one_process()[name]
    off = differences(found.trace, plain_trace(JOBS[name], initial, STEPS))
    assert max(off) <= TOLERANCE, off


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world_size", LAYOUTS)
def test_every_layout_finetunes_the_model_of_one_process(world_size: int) -> None:
    cells = [(name, case) for case in LAYOUTS[world_size] for name in JOBS]
    jobs = [(JOBS[name], case) for name, case in cells]
    results = run_ranks(train_jobs, jobs, STEPS, world_size=world_size, timeout=280)[0]
    wrong = []
    for (name, case), found in zip(cells, results, strict=True):
        _, expected = one_process()[name]
        off = (
            *differences(found.trace, expected.trace),
            float(np.abs(np.subtract(found.metrics, expected.metrics)).max(initial=0.0)),
            float(np.abs(found.scores - expected.scores).max()),
        )
        if not max(off) <= TOLERANCE:
            wrong.append(f"{name} {case}: loss, norm, weights, metrics, scores off by {off}")
    assert not wrong, "\n".join(wrong)


def test_half_precision_has_the_loss_of_single_precision() -> None:
    half = [
        ("choice", Case(layers=2, tp=2, zero=1, micro_batch=4, dtype="bf16")),
        ("tokens", Case(layers=2, dp=2, zero=3, micro_batch=4, dtype="fp16")),
        ("smoothed", Case(layers=2, dp=2, zero=2, micro_batch=4, dtype="bf16")),
        ("classes", Case(layers=2, pp=2, zero=1, micro_batch=4, dtype="fp16")),
        ("logits", Case(layers=2, tp=2, zero=1, micro_batch=4, dtype="fp16", sp=True)),
    ]
    jobs = [(JOBS[name], case) for name, case in half]
    for (name, case), found in zip(
        half, run_ranks(train_jobs, jobs, 1, world_size=2)[0], strict=True
    ):
        first = one_process()[name][1].trace.losses[0]
        # bf16 has 8 bits, so logits near 1 are off by up to 0.004
        assert found.trace.losses[0] == pytest.approx(first, rel=5e-3), case


def test_tensor_ranks_drop_the_same_units_of_the_head() -> None:
    # whole_weights, at the end, asserts that the copies of every weight are equal to the bit.
    case = Case(layers=2, tp=2, micro_batch=4, dropout=0.2)
    (found, _) = run_ranks(train_jobs, [(JOBS["classes"], case)], 2, world_size=2)
    assert found[0].trace.losses != pytest.approx(one_process()["classes"][1].trace.losses[:2])


def test_a_head_is_resumed_in_any_layout(tmp_path: Path) -> None:
    cases = [
        Case(layers=2, tp=2, zero=1, micro_batch=4),
        Case(layers=2, dp=2, zero=3, micro_batch=4),
        Case(layers=2, pp=2, zero=1, micro_batch=4),
    ]
    found = run_ranks(resume_elsewhere, JOBS["classes"], cases, tmp_path, world_size=2)[0]
    off = differences(found, one_process()["classes"][1].trace)
    assert max(off) <= TOLERANCE, off
