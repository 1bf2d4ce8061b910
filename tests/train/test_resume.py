"""Stop at step 5 of 10 and go on: to the bit in the same layout, equally well in any other."""

from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.train.state import restore_state, save_state
from tests.ranks import run_ranks
from tests.train.grid import Case, Trace, build_engine, run_steps, whole_weights
from tests.train.test_layout_grid import LAYOUTS, TOLERANCE, differences

STOP, END = 5, 10


def folder_of(folder: Path, case: Case) -> Path:
    """Where a case keeps its checkpoint."""
    return folder / str(case).replace(" ", "_")


def save_and_go_on(cases: list[Case], folder: Path) -> list[Trace]:
    """Save after STOP steps, then go on to END as if nothing had happened."""
    enable_cpu()
    traces = []
    for case in cases:
        engine = build_engine(case, build_groups(case.layout, timedelta(seconds=60)))
        run_steps(engine, case, range(STOP))
        save_state(engine, folder_of(folder, case), step=STOP, extra={}, keep_last=1)
        losses, norms = run_steps(engine, case, range(STOP, END))
        traces.append(Trace(losses, norms, whole_weights(engine)))
    return traces


def resume(pairs: list[tuple[Case, Case]], folder: Path) -> list[Trace]:
    """Train from STOP to END in the second case's layout from the first case's checkpoint."""
    enable_cpu()
    traces = []
    for source, case in pairs:
        engine = build_engine(case, build_groups(case.layout, timedelta(seconds=60)))
        info = find_checkpoint(folder_of(folder, source))
        assert info is not None
        assert restore_state(engine, info) == STOP
        losses, norms = run_steps(engine, case, range(STOP, END))
        traces.append(Trace(losses, norms, whole_weights(engine)))
    return traces


def cases_of(world_size: int) -> list[Case]:
    """Every layout of a world size under every ZeRO stage it allows."""
    return [
        Case(tp=tp, pp=pp, dp=dp, zero=zero, micro_batch=2)
        for tp, pp, dp in LAYOUTS[world_size]
        for zero in (0, 1, 2, 3)
        if zero < 2 or pp == 1
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of all cases, shared by the tests of this file."""
    return tmp_path_factory.mktemp("resume")


@cache
def uninterrupted(world_size: int, folder: Path) -> dict[Case, Trace]:
    """Every case of a world size without a stop; leaves their checkpoints behind."""
    cases = cases_of(world_size)
    traces = run_ranks(save_and_go_on, cases, folder, world_size=world_size, timeout=600)[0]
    return dict(zip(cases, traces, strict=True))


def assert_equal_bits(found: Trace, expected: Trace, what: str) -> None:
    """Losses, norms and weights are the same numbers."""
    assert found.losses == expected.losses, what
    assert found.norms == expected.norms, what
    for name, weights in expected.weights.items():
        assert np.array_equal(found.weights[name], weights), f"{what}: {name}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_resuming_in_the_same_layout_changes_no_bit(world_size: int, folder: Path) -> None:
    whole = uninterrupted(world_size, folder)
    pairs = [(case, case) for case in whole]
    resumed = run_ranks(resume, pairs, folder, world_size=world_size, timeout=600)[0]
    for case, trace in zip(whole, resumed, strict=True):
        assert_equal_bits(trace, whole[case], str(case))


def check_pairs(world_size: int, sources: list[Case], targets: list[Case], folder: Path) -> None:
    """Resume every source in every target of one world size and compare with one process."""
    expected = uninterrupted(1, folder)[Case(micro_batch=2)]
    pairs = [(source, target) for source in sources for target in targets]
    resumed = run_ranks(resume, pairs, folder, world_size=world_size, timeout=1500)[0]
    wrong = [
        f"{source} -> {target}: {differences(trace, expected)}"
        for (source, target), trace in zip(pairs, resumed, strict=True)
        if not max(differences(trace, expected)) <= TOLERANCE
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_one_checkpoint_resumes_in_every_layout(world_size: int, folder: Path) -> None:
    uninterrupted(4, folder)
    sources = [Case(tp=2, pp=2, zero=1, micro_batch=2), Case(dp=4, zero=3, micro_batch=2)]
    check_pairs(world_size, sources, cases_of(world_size), folder)


@pytest.mark.timeout(1500)
def test_the_checkpoint_of_every_layout_resumes_in_one_process(folder: Path) -> None:
    sources = [case for world in (1, 2, 4) for case in uninterrupted(world, folder)]
    check_pairs(1, sources, [Case(zero=1, micro_batch=2)], folder)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_checkpoint_resumes_in_every_layout(world_size: int, folder: Path) -> None:
    sources = [case for world in (1, 2, 4) for case in uninterrupted(world, folder)]
    check_pairs(world_size, sources, cases_of(world_size), folder)
