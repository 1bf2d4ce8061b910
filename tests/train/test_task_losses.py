"""Any layout finetunes the same model: loss, gradient norm and weights against one process."""

from functools import cache

import numpy as np
import pytest

from tests.ranks import run_ranks
from tests.train.grid import Case, Trace
from tests.train.task_grid import EXAMPLES, JOBS, plain_trace, train_alone, train_jobs
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
def one_process() -> dict[str, tuple[dict[str, np.ndarray], Trace, list[float]]]:
    """First weights and results of each job in one process: no ZeRO, one micro-batch."""
    jobs = list(JOBS.values())
    return dict(zip(JOBS, run_ranks(train_alone, jobs, ALONE, STEPS, world_size=1)[0], strict=True))


@pytest.mark.parametrize("name", JOBS)
def test_one_process_finetunes_the_model_of_plain_torch(name: str) -> None:
    initial, trace, _ = one_process()[name]
    found = differences(trace, plain_trace(JOBS[name], initial, STEPS))
    assert max(found) <= TOLERANCE, found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world_size", LAYOUTS)
def test_every_layout_finetunes_the_model_of_one_process(world_size: int) -> None:
    cells = [(name, case) for case in LAYOUTS[world_size] for name in JOBS]
    jobs = [(JOBS[name], case) for name, case in cells]
    traces = run_ranks(train_jobs, jobs, STEPS, world_size=world_size, timeout=280)[0]
    wrong = []
    for (name, case), (trace, metrics) in zip(cells, traces, strict=True):
        _, expected, same_metrics = one_process()[name]
        found = differences(trace, expected)
        if not max(found) <= TOLERANCE or metrics != pytest.approx(same_metrics, abs=1e-5):
            wrong.append(f"{name} {case}: {found}, metrics {metrics} for {same_metrics}")
    assert not wrong, "\n".join(wrong)
