"""Stop at step 2 of 4 and resume: bit-identical in the same layout, within rounding in others."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.train.state import restore_state, save_state
from tests.ranks import run_ranks
from tests.train.grid import ARCHITECTURE, Case, Trace, build_engine, run_steps, whole_weights
from tests.train.test_layout_grid import LAYOUTS, TOLERANCE, differences

STOP, END = 2, 4
ALL = tuple(ARCHITECTURE)


def folder_of(folder: Path, case: Case) -> Path:
    """Return the folder of a case's checkpoint."""
    return folder / str(case).replace(" ", "_")


def save_and_go_on(cases: list[Case], folder: Path) -> list[Trace]:
    """Save after STOP steps, then continue to END without a restart."""
    traces = []
    for case in cases:
        engine = build_engine(case)
        run_steps(engine, case, range(STOP))
        save_state(engine, folder_of(folder, case), step=STOP, extra={}, keep_last=1)
        losses, norms = run_steps(engine, case, range(STOP, END))
        traces.append(Trace(losses, norms, whole_weights(engine)))
    return traces


def resume(pairs: list[tuple[Case, Case]], folder: Path) -> list[Trace]:
    """Train from STOP to END in the second case's layout from the first case's checkpoint."""
    traces = []
    for source, case in pairs:
        engine = build_engine(case)
        info = find_checkpoint(folder_of(folder, source))
        assert info is not None
        assert restore_state(engine, info) == STOP
        losses, norms = run_steps(engine, case, range(STOP, END))
        traces.append(Trace(losses, norms, whole_weights(engine)))
    return traces


def cases_of(world_size: int, zeros: tuple[int, ...]) -> list[Case]:
    """Every layout of a world size under those ZeRO stages that it allows."""
    return [
        Case(tp=tp, pp=pp, dp=dp, zero=zero, micro_batch=4)
        for tp, pp, dp in LAYOUTS[world_size]
        for zero in zeros
        if zero < 2 or pp == 1
    ]


DEFAULT = {
    1: [Case(zero=0, micro_batch=4), Case(zero=1, micro_batch=4)],
    2: [
        Case(dp=2, zero=0, micro_batch=4),
        Case(dp=2, zero=2, micro_batch=4),
        Case(dp=2, zero=3, micro_batch=4),
        Case(tp=2, zero=1, micro_batch=4, sp=True),
        Case(pp=2, zero=1, micro_batch=4, vp=2),
        Case(dp=2, zero=3, micro_batch=4, offload=True),
        Case(dp=2, zero=1, micro_batch=4, dtype="bf16", offload=True),
        Case(dp=2, zero=1, micro_batch=4, dtype="bf16"),
        Case(dp=2, zero=0, micro_batch=4, dtype="bf16"),
        Case(pp=2, zero=1, micro_batch=4, dtype="bf16", vp=2),
        Case(dp=2, zero=2, micro_batch=4, dtype="fp16"),
        Case(tp=2, zero=1, micro_batch=4, dtype="fp16", sp=True),
    ],
    4: [
        Case(tp=2, pp=2, zero=1, micro_batch=4),
        Case(tp=2, dp=2, zero=3, micro_batch=4),
        Case(dp=4, zero=3, micro_batch=4),
        Case(pp=4, zero=1, micro_batch=4),
    ],
}
"""Layouts that the default run stops and resumes, by number of processes."""

SOURCES = [DEFAULT[4][0], DEFAULT[4][2]]
"""Checkpoints that the default run resumes in other layouts."""

TURNS = ((0, 3), (1,))
"""ZeRO stages of every second layout into which it resumes them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of all cases, shared by the tests of this file."""
    return tmp_path_factory.mktemp("resume")


@cache
def uninterrupted(world_size: int, cases: tuple[Case, ...], folder: Path) -> dict[Case, Trace]:
    """Cases of a world size without a stop; leaves their checkpoints behind."""
    traces = run_ranks(save_and_go_on, cases, folder, world_size=world_size, timeout=1800)[0]
    return dict(zip(cases, traces, strict=True))


def default_run(world_size: int, folder: Path) -> dict[Case, Trace]:
    """The cases of the default run without a stop."""
    return uninterrupted(world_size, tuple(DEFAULT[world_size]), folder)


def assert_equal_bits(found: Trace, expected: Trace, what: str) -> None:
    """Losses, norms and weights are the same numbers."""
    assert found.losses == expected.losses, what
    assert found.norms == expected.norms, what
    for name, weights in expected.weights.items():
        assert np.array_equal(found.weights[name], weights), f"{what}: {name}"


def check_bits(whole: dict[Case, Trace], world_size: int, folder: Path) -> None:
    """Resume each case in its own layout and compare with its run without a stop."""
    pairs = [(case, case) for case in whole]
    resumed = run_ranks(resume, pairs, folder, world_size=world_size, timeout=900)[0]
    for case, trace in zip(whole, resumed, strict=True):
        assert_equal_bits(trace, whole[case], str(case))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_resuming_in_the_same_layout_changes_no_bit(world_size: int, folder: Path) -> None:
    check_bits(default_run(world_size, folder), world_size, folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_resuming_in_every_layout_changes_no_bit(world_size: int, folder: Path) -> None:
    cases = tuple(cases_of(world_size, (0, 1, 2, 3)))
    check_bits(uninterrupted(world_size, cases, folder), world_size, folder)


def check_pairs(
    world_size: int,
    pairs: list[tuple[Case, Case]],
    folder: Path,
    *,
    architecture: tuple[str, ...] = (),
) -> None:
    """Resume each pair's source in its target and compare with one process."""
    serial = Case(micro_batch=4, architecture=architecture)
    if architecture:
        expected = uninterrupted(1, (serial,), folder)[serial]
    else:
        expected = default_run(1, folder)[serial]
    resumed = run_ranks(resume, pairs, folder, world_size=world_size, timeout=3600)[0]
    wrong = [
        f"{source} -> {target}: {differences(trace, expected)}"
        for (source, target), trace in zip(pairs, resumed, strict=True)
        if not max(differences(trace, expected)) <= TOLERANCE
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_one_checkpoint_resumes_in_every_layout(world_size: int, folder: Path) -> None:
    default_run(4, folder)
    # ZeRO stages and sources take turns over the layouts; the product is slow.
    layouts = LAYOUTS[world_size]
    targets = [
        case
        for case in cases_of(world_size, (0, 1, 3))
        if case.zero in TURNS[layouts.index((case.tp, case.pp, case.dp)) % 2]
    ]
    pairs = [(SOURCES[i % 2], target) for i, target in enumerate(targets)]
    check_pairs(world_size, pairs, folder)


@pytest.mark.timeout(900)
def test_options_of_the_architecture_resume_in_other_layouts(folder: Path) -> None:
    cut = Case(tp=2, zero=1, micro_batch=4, sp=True, architecture=ALL)
    stages = Case(pp=2, zero=1, micro_batch=4, architecture=ALL)
    sharded = Case(tp=2, zero=3, micro_batch=4, architecture=ALL)
    serial = Case(micro_batch=4, architecture=ALL)
    whole = uninterrupted(2, (cut, stages, sharded), folder)

    check_pairs(1, [(cut, serial), (sharded, serial)], folder, architecture=ALL)
    pairs = [(serial, cut), (cut, stages), (stages, sharded), (sharded, cut)]
    check_pairs(2, pairs, folder, architecture=ALL)
    (trace,) = run_ranks(there_and_back, [(cut, stages)], folder, world_size=2, timeout=600)[0]
    assert_equal_bits(trace, whole[cut], "there and back")


def there_and_back(pairs: list[tuple[Case, Case]], folder: Path) -> list[Trace]:
    """Load each source's checkpoint in another layout, save it, and resume in the source's."""
    traces = []
    for source, other in pairs:
        target = folder_of(folder, source)
        for case in (other, source):
            engine = build_engine(case)
            info = find_checkpoint(target)
            assert info is not None
            restore_state(engine, info)
            target = folder_of(folder, source) / f"through_{case.layout}_{case.zero}"
            save_state(engine, target, step=STOP, extra={}, keep_last=1)
        losses, norms = run_steps(engine, source, range(STOP, END))
        traces.append(Trace(losses, norms, whole_weights(engine)))
    return traces


@pytest.mark.timeout(900)
def test_a_detour_through_another_layout_changes_no_bit(folder: Path) -> None:
    whole = default_run(2, folder)
    pairs = [
        (
            Case(tp=2, zero=1, micro_batch=4, sp=True),
            Case(pp=2, zero=1, micro_batch=4, vp=2),
        ),
        (
            Case(pp=2, zero=1, micro_batch=4, dtype="bf16", vp=2),
            Case(dp=2, zero=3, micro_batch=4, dtype="bf16"),
        ),
        (
            Case(tp=2, zero=1, micro_batch=4, dtype="fp16", sp=True),
            Case(dp=2, zero=2, micro_batch=4, dtype="fp16"),
        ),
        (Case(dp=2, zero=2, micro_batch=4), Case(pp=2, zero=0, micro_batch=4)),
        (
            Case(dp=2, zero=3, micro_batch=4, offload=True),
            Case(pp=2, zero=1, micro_batch=4, offload=True),
        ),
    ]

    back = run_ranks(there_and_back, pairs, folder, world_size=2, timeout=600)[0]

    for (source, other), trace in zip(pairs, back, strict=True):
        assert_equal_bits(trace, whole[source], f"{source} -> {other}")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_checkpoint_resumes_in_every_layout(world_size: int, folder: Path) -> None:
    sources = [
        case
        for size in (1, 2, 4)
        for case in uninterrupted(size, tuple(cases_of(size, (0, 1, 2, 3))), folder)
    ]
    targets = cases_of(world_size, (0, 1, 2, 3))
    check_pairs(world_size, [(source, t) for source in sources for t in targets], folder)
