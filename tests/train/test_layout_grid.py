"""Any layout trains the same model: loss, gradient norm and every weight against one process."""

from functools import cache

import numpy as np
import pytest

from tests.ranks import run_ranks
from tests.train import plain
from tests.train.grid import (
    ARCHITECTURE,
    FEW_STEPS,
    OPTIMIZER,
    STEPS,
    VOCAB_SIZE,
    Case,
    Trace,
    initial_weights,
    rows_of_step,
    train_cases,
)

TOLERANCE = 1e-5

LAYOUTS = {
    1: [(1, 1, 1)],
    2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    4: [(4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 1), (2, 1, 2), (1, 2, 2)],
}
MICRO_BATCHES = (1, 2, 4)


def cases_of(world_size: int) -> list[Case]:
    """Every layout of a world size with ZeRO 0 and 1, and 2 and 3 where there is one stage."""
    return [
        Case(tp=tp, pp=pp, dp=dp, zero=zero, micro_batch=micro_batch)
        for tp, pp, dp in LAYOUTS[world_size]
        for zero in (0, 1, 2, 3)
        for micro_batch in MICRO_BATCHES
        if zero < 2 or pp == 1
    ]


def default_cases_of(world_size: int) -> list[Case]:
    """Each layout and ZeRO stage once; the micro-batches take turns in both.

    A single replica takes no rows of one, which would be sixteen micro-batches a step.
    """
    layouts = LAYOUTS[world_size]
    sizes = {1: MICRO_BATCHES[1:], 2: MICRO_BATCHES, 4: MICRO_BATCHES}
    return [
        case
        for case in cases_of(world_size)
        if case.micro_batch
        == sizes[case.dp][
            (layouts.index((case.tp, case.pp, case.dp)) + case.zero) % len(sizes[case.dp])
        ]
    ]


@cache
def one_process(
    layers: int = 4, architecture: tuple[str, ...] = (), *, steps: int = STEPS
) -> Trace:
    """The serial run: one process, no ZeRO, the whole batch in one micro-batch."""
    case = Case(micro_batch=16, layers=layers, architecture=architecture)
    traces: list[Trace] = run_ranks(train_cases, [case], steps, world_size=1)[0]
    return traces[0]


def differences(found: Trace, expected: Trace) -> tuple[float, float, float]:
    """Largest absolute difference of losses, norms and weights."""
    assert found.weights.keys() == expected.weights.keys()
    return (
        max(abs(a - b) for a, b in zip(found.losses, expected.losses, strict=True)),
        max(abs(a - b) for a, b in zip(found.norms, expected.norms, strict=True)),
        max(float(np.abs(w - expected.weights[name]).max()) for name, w in found.weights.items()),
    )


def run_grid(
    world_size: int, cases: list[Case], *, steps: int = STEPS
) -> list[tuple[Case, tuple[float, float, float]]]:
    """Train cases of a world size in one group of processes and compare each with one process."""
    traces: list[Trace] = run_ranks(train_cases, cases, steps, world_size=world_size, timeout=1800)[
        0
    ]
    return [
        (case, differences(trace, one_process(case.layers, case.architecture, steps=steps)))
        for case, trace in zip(cases, traces, strict=True)
    ]


def format_table(rows: list[tuple[Case, tuple[float, float, float]]]) -> str:
    """Markdown, one line per case."""
    lines = [
        "| layout | ZeRO | micro-batch | Δ loss | Δ gradient norm | Δ weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case, (loss, norm, weights) in rows:
        layout = ", ".join(filter(None, (str(case.layout), case.options)))
        lines.append(
            f"| {layout} | {case.zero} | {case.micro_batch} "
            f"| {loss:.1e} | {norm:.1e} | {weights:.1e} |"
        )
    return "\n".join(lines)


def check_grid(
    world_size: int, cases: list[Case], capsys: pytest.CaptureFixture[str], *, steps: int = STEPS
) -> None:
    """Run the cases, show their table, and demand one process's numbers of each."""
    rows = run_grid(world_size, cases, steps=steps)
    with capsys.disabled():
        print(f"\n{format_table(rows)}")
    wrong = [f"{case}: {found}" for case, found in rows if not max(found) <= TOLERANCE]
    assert not wrong, "\n".join(wrong)


ARCHITECTURES = [(), *((name,) for name in ARCHITECTURE), tuple(ARCHITECTURE)]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda names: "+".join(names) or "none")
def test_one_process_trains_the_model_of_plain_torch(architecture: tuple[str, ...]) -> None:
    losses, norms, weights = plain.train(
        run_ranks(initial_weights, Case(architecture=architecture), world_size=1)[0],
        [rows_of_step(step) for step in range(STEPS)],
        loss_of=lambda weights, rows: (
            plain.loss_sum(weights, rows, vocab_size=VOCAB_SIZE, options=frozenset(architecture))
            / plain.num_targets(rows)
        ),
        learning_rate=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        epsilon=OPTIMIZER.epsilon,
        weight_decay=OPTIMIZER.weight_decay,
        clip=OPTIMIZER.gradient_clipping,
    )

    found = differences(one_process(architecture=architecture), Trace(losses, norms, weights))

    assert max(found) <= TOLERANCE, found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_layout_trains_the_model_of_one_process(
    world_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    check_grid(world_size, default_cases_of(world_size), capsys, steps=FEW_STEPS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_layout_and_micro_batch_trains_the_model_of_one_process(
    world_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    check_grid(world_size, cases_of(world_size), capsys)
