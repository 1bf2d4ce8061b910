"""Recomputation in backward: the right modules, with the dropout masks of the forward pass."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from glm_dist.model.attention.dispatch import PrefixAttention
from glm_dist.model.layer import MLP
from glm_dist.parallel.cpu import enable_cpu
from tests.ranks import run_ranks
from tests.train.grid import FEW_STEPS, Case, build_engine, run_steps, train_cases
from tests.train.test_layout_grid import differences

LAYERS = 4


def note(called: list[type], module: torch.nn.Module, *_: object) -> None:
    """Remember that a module ran."""
    called.append(type(module))


def forward_calls(cases: list[Case]) -> list[tuple[int, int]]:
    """Calls of core attention and MLP while one micro-batch trains, case after case."""
    enable_cpu()
    counts = []
    for case in cases:
        engine = build_engine(case)
        called: list[type] = []
        for module in engine.model.modules():
            if isinstance(module, PrefixAttention | MLP):
                module.register_forward_hook(partial(note, called))
        run_steps(engine, case, range(1))
        counts.append((called.count(PrefixAttention), called.count(MLP)))
    return counts


def test_backward_runs_again_what_the_mode_says() -> None:
    modes = [("none", 1), ("selective", 1), ("full", 1), ("full", 2)]
    cases = [Case(micro_batch=16, recompute=mode, segment=segment) for mode, segment in modes]

    assert run_ranks(forward_calls, cases, world_size=1)[0] == [
        (LAYERS, LAYERS),
        (2 * LAYERS, LAYERS),
        (2 * LAYERS, 2 * LAYERS),
        (2 * LAYERS, 2 * LAYERS),
    ]


@pytest.mark.timeout(600)
def test_recomputed_layers_drop_what_was_dropped_before() -> None:
    kept = [
        Case(tp=2, zero=1, micro_batch=4, dropout=0.2),
        Case(tp=2, zero=2, micro_batch=4, sp=True, dropout=0.2),
        Case(pp=2, zero=1, micro_batch=4, vp=2, dropout=0.2),
        Case(dp=2, zero=3, micro_batch=4, dropout=0.2),
        Case(tp=2, zero=0, micro_batch=4, dropout=0.2, architecture=("lora",)),
        Case(tp=2, zero=0, micro_batch=4, sp=True, dropout=0.2, architecture=("lora",)),
    ]
    cases = [
        replace(case, recompute=mode) for case in kept for mode in ("none", "selective", "full")
    ]

    traces = run_ranks(train_cases, cases, FEW_STEPS, world_size=2, timeout=600)[0]

    for i in range(0, len(cases), 3):
        for case, trace in zip(cases[i + 1 : i + 3], traces[i + 1 : i + 3], strict=True):
            assert max(differences(trace, traces[i])) <= 1e-6, case


def dropped(steps: int) -> list[torch.Tensor]:
    """Losses of the first steps with and without dropout."""
    enable_cpu()
    losses = []
    for dropout in (0.0, 0.2):
        case = Case(micro_batch=16, dropout=dropout)
        engine = build_engine(case)
        losses.append(run_steps(engine, case, range(steps))[0])
    return losses


def test_dropout_of_the_cases_above_is_felt() -> None:
    without, with_dropout = run_ranks(dropped, 1, world_size=1)[0]

    assert abs(without[0] - with_dropout[0]) > 1e-3
