"""Options of a layout beyond its sizes change no number either.

The default run holds one case of each kind; the products are slow.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from glm_dist.parallel.cpu import enable_cpu
from tests.ranks import run_ranks
from tests.train.grid import ARCHITECTURE, FEW_STEPS, Case, build_engine, initial_weights
from tests.train.test_layout_grid import MICRO_BATCHES, check_grid

SEQUENCE_PARALLEL = {
    2: [Case(tp=2, zero=zero, micro_batch=4, sp=True) for zero in (0, 1, 2, 3)],
    4: [
        Case(tp=4, zero=1, micro_batch=4, sp=True),
        Case(tp=2, pp=2, zero=1, micro_batch=4, sp=True),
        *(Case(tp=2, dp=2, zero=zero, micro_batch=2, sp=True) for zero in (0, 1, 2, 3)),
    ],
}

INTERLEAVED = {
    2: [
        Case(pp=2, zero=0, micro_batch=4, vp=2),
        Case(pp=2, zero=1, micro_batch=1, vp=2),
    ],
    4: [
        Case(pp=4, zero=1, micro_batch=4, vp=2, layers=8),
        Case(tp=2, pp=2, zero=1, micro_batch=4, sp=True, vp=2),
        Case(pp=2, dp=2, zero=0, micro_batch=2, vp=2),
    ],
}

UNEVEN = {
    2: [
        Case(pp=2, zero=1, micro_batch=4, layers=6, split=(4, 2)),
        Case(pp=2, zero=0, micro_batch=4, vp=2, layers=6, split=(1, 2, 2, 1)),
    ],
    4: [Case(pp=4, zero=1, micro_batch=4, layers=6, split=(1, 2, 2, 1))],
}

RECOMPUTED = {
    2: [
        Case(tp=2, zero=3, micro_batch=4, recompute="full"),
        Case(dp=2, zero=2, micro_batch=2, recompute="full", segment=2),
        Case(dp=2, zero=3, micro_batch=2, recompute="selective"),
    ],
    4: [
        Case(tp=2, pp=2, zero=1, micro_batch=4, sp=True, recompute="full"),
        Case(tp=2, pp=2, zero=0, micro_batch=4, sp=True, vp=2, recompute="selective"),
        Case(tp=2, dp=2, zero=2, micro_batch=2, sp=True, recompute="full", segment=4),
    ],
}

OFFLOADED = {
    2: [
        *(Case(dp=2, zero=zero, micro_batch=4, offload=True) for zero in (1, 2, 3)),
        Case(pp=2, zero=1, micro_batch=4, vp=2, offload=True),
    ],
    4: [Case(tp=2, dp=2, zero=3, micro_batch=4, sp=True, offload=True)],
}

ALL = tuple(ARCHITECTURE)

GLM_130B = {
    2: [
        Case(tp=2, zero=0, micro_batch=4, architecture=ALL),
        Case(tp=2, zero=1, micro_batch=4, sp=True, architecture=ALL),
        Case(tp=2, zero=3, micro_batch=4, recompute="full", architecture=ALL),
        Case(pp=2, zero=1, micro_batch=4, architecture=ALL),
        Case(pp=2, zero=0, micro_batch=4, vp=2, recompute="selective", architecture=ALL),
    ],
    4: [
        Case(tp=4, zero=1, micro_batch=4, architecture=ALL),
        Case(tp=2, pp=2, zero=1, micro_batch=4, architecture=ALL),
        Case(tp=2, pp=2, zero=1, micro_batch=4, sp=True, recompute="full", architecture=ALL),
    ],
}

KINDS = (SEQUENCE_PARALLEL, INTERLEAVED, UNEVEN, RECOMPUTED, OFFLOADED, GLM_130B)
OPTIONS = {size: [case for kind in KINDS for case in kind[size]] for size in (2, 4)}
"""By number of processes."""


def products_of(world_size: int) -> list[Case]:
    """Every option with every ZeRO stage and micro-batch that it allows."""
    sequence_parallel = [
        Case(tp=tp, pp=pp, dp=dp, zero=zero, micro_batch=micro_batch, sp=True)
        for (tp, pp, dp), zero, micro_batch in product(
            [(2, 1, 1), (4, 1, 1), (2, 2, 1), (2, 1, 2)], (0, 1, 2, 3), MICRO_BATCHES
        )
        if tp * pp * dp == world_size and (zero < 2 or pp == 1)
    ]
    interleaved = [
        Case(
            tp=tp,
            pp=pp,
            dp=dp,
            zero=zero,
            micro_batch=micro_batch,
            sp=sp,
            vp=vp,
            layers=pp * vp,
        )
        for (tp, pp, dp, vp), zero, micro_batch, sp in product(
            [(1, 2, 1, 2), (1, 2, 1, 4), (1, 4, 1, 2), (2, 2, 1, 2), (1, 2, 2, 2)],
            (0, 1),
            MICRO_BATCHES,
            (False, True),
        )
        if tp * pp * dp == world_size and (tp > 1 or not sp)
    ]
    recomputed = [
        replace(case, recompute=mode, segment=segment)
        for case in sequence_parallel + interleaved
        for mode, segment in (("selective", 1), ("full", 1), ("full", 2))
        if case.micro_batch == 2 and case.layers // (case.pp * case.vp) % segment == 0
    ]
    offloaded = [
        replace(case, offload=True)
        for case in sequence_parallel + interleaved
        if case.zero > 0 and case.micro_batch == 4
    ]
    return sequence_parallel + interleaved + recomputed + offloaded


@pytest.mark.timeout(900)
@pytest.mark.parametrize("world_size", [2, 4])
def test_no_option_changes_what_is_trained(
    world_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    check_grid(world_size, OPTIONS[world_size], capsys, steps=FEW_STEPS)


def test_options_of_the_architecture_start_from_the_same_weights_in_every_layout() -> None:
    (whole,) = run_ranks(initial_weights, Case(architecture=ALL), world_size=1)
    for case in (Case(tp=4, architecture=ALL), Case(tp=2, pp=2, architecture=ALL)):
        found = run_ranks(initial_weights, case, world_size=4)[0]
        assert found.keys() == whole.keys()
        for name, weights in whole.items():
            assert np.array_equal(found[name], weights), name


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_size", [2, 4])
def test_no_product_of_options_changes_what_is_trained(
    world_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    check_grid(world_size, products_of(world_size), capsys)


def offloads(cases: list[Case]) -> list[bool]:
    """Return True if DeepSpeed's optimizer offloads to the host."""
    enable_cpu()
    answers = []
    for case in cases:
        engine = build_engine(case)
        optimizer = engine.zero._inner
        answers.append(getattr(optimizer, "cpu_offload", False) or optimizer.offload_optimizer)
    return answers


def test_offloaded_cases_are_offloaded() -> None:
    cases = [Case(zero=zero, offload=True) for zero in (1, 2, 3)]

    assert run_ranks(offloads, cases, world_size=1)[0] == [True, True, True]
