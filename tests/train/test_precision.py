"""Half precision: the trend of single precision, overflows met together, exact resume."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.config.schema import LossNormalization
from glm_dist.model.main_gradient import ARRIVED, main_gradient
from glm_dist.optim.state import Rates
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.state import restore_state, save_state
from glm_dist.train.step import train_step
from tests.ranks import run_ranks
from tests.train.grid import (
    Case,
    build_engine,
    micro_batches_of,
    rows_of_step,
    run_steps,
    whole_weights,
)

TREND = [0, 1] * 5
LONG_TREND = [0, 1] * 10
"""Two batches over and over, so that the loss falls."""

LAYOUTS = [
    Case(tp=2, zero=1, micro_batch=4, sp=True),
    Case(pp=2, zero=1, micro_batch=4, vp=2),
    Case(dp=2, zero=1, micro_batch=4),
    Case(dp=2, zero=2, micro_batch=4),
    Case(dp=2, zero=3, micro_batch=8),
    Case(dp=2, zero=1, micro_batch=4, offload=True),
    Case(dp=2, zero=2, micro_batch=4, offload=True),
    Case(dp=2, zero=0, micro_batch=4),
]


def cases_of(dtype: str) -> list[Case]:
    """Every layout in a number format."""
    return [replace(case, dtype=dtype) for case in LAYOUTS]


def trend(cases: list[Case], steps: list[int]) -> list[tuple[list[float], float]]:
    """Losses of all steps and the gradient norm of the first, case after case."""
    enable_cpu()
    found = []
    for case in cases:
        engine = build_engine(case)
        losses, norms = run_steps(engine, case, steps)
        found.append((losses, norms[0]))
        whole_weights(engine)  # asserts that every copy of a weight is the same
    return found


@cache
def single_precision() -> list[float]:
    """The long trend in fp32 in one process."""
    (found,) = run_ranks(trend, [Case(micro_batch=16)], LONG_TREND, world_size=1)[0]
    losses: list[float] = found[0]
    return losses


def check_trend(cases: list[Case], steps: list[int]) -> None:
    """Demand single precision's losses of every case."""
    expected = single_precision()[: len(steps)]
    found = run_ranks(trend, cases, steps, world_size=2, timeout=900)[0]
    first: dict[tuple[int, int, bool], float] = {}
    for case, (losses, norm) in zip(cases, found, strict=True):
        assert losses == pytest.approx(expected, rel=1e-3), case
        # Whatever shards them, the same gradients have the same norm. Main gradients are not
        # rounded to 16 bits on the way.
        if case.dp > 1:
            has_main = case.zero < 2 and not case.offload
            alike = first.setdefault((case.dp, case.micro_batch, has_main), norm)
            assert norm == pytest.approx(alike, rel=1e-6), case


def test_the_trend_falls() -> None:
    losses = single_precision()

    assert losses[0] - losses[-1] > 0.1
    assert losses[0] - losses[len(TREND) - 1] > 0.05


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("dtype", "chosen"), [("bf16", (0, 2, 4, 6, 7)), ("fp16", (1, 3, 4, 5))])
def test_half_precision_follows_the_trend_of_single_precision(
    dtype: str, chosen: tuple[int, ...]
) -> None:
    check_trend([cases_of(dtype)[i] for i in chosen], TREND)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_every_layout_in_half_precision_follows_a_longer_trend(dtype: str) -> None:
    check_trend(cases_of(dtype), LONG_TREND)


def poison(engine: TrainingEngine) -> Callable[[], None]:
    """Let one weight of the last rank alone have an infinite gradient; returns the antidote."""
    if dist.get_rank() < dist.get_world_size() - 1:
        return lambda: None
    weight = next(p.parameter for p in engine.shards if p.name.endswith("linear_fc1.weight"))
    total = main_gradient(weight)
    if total is None:
        return weight.register_hook(lambda gradient: gradient * float("inf")).remove
    listener = getattr(weight, ARRIVED, lambda: None)

    def strike() -> None:
        total.mul_(float("inf"))
        listener()

    setattr(weight, ARRIVED, strike)
    return lambda: setattr(weight, ARRIVED, listener)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Return True if two models are bit-identical."""
    return all(np.array_equal(one[name], other[name]) for name in one)


def overflow(cases: list[Case]) -> list[tuple[float, int, bool, bool]]:
    """Norm and skipped steps of an overflow; whether weights stayed then and moved afterwards."""
    enable_cpu()
    answers = []
    for case in cases:
        engine = build_engine(case)
        run_steps(engine, case, [0])
        before = whole_weights(engine)
        heal = poison(engine)
        norm = run_steps(engine, case, [1])[1][0]
        heal()
        after = whole_weights(engine)
        skipped = engine.zero.skipped_steps
        run_steps(engine, case, [2])
        moved = not equal(after, whole_weights(engine))
        answers.append((norm, skipped, equal(before, after), moved))
    return answers


@pytest.mark.timeout(600)
def test_an_overflow_on_one_rank_is_skipped_by_all() -> None:
    cases = cases_of("fp16")

    for of_rank in run_ranks(overflow, cases, world_size=2, timeout=600):
        assert dict(zip(map(str, cases), of_rank, strict=True)) == {
            str(case): (float("inf"), 1, True, True) for case in cases
        }


@dataclass(frozen=True)
class Answer:
    """Result of a step with an infinite gradient."""

    is_skipped: bool
    is_recoverable: bool
    is_unchanged: bool
    """True if every weight of the model is unchanged, bit for bit."""


def poisoned_steps(cases: list[Case]) -> list[Answer]:
    """Train a step, then one with an infinite gradient, case after case."""
    enable_cpu()
    answers = []
    for case in cases:
        engine = build_engine(case)
        if case.min_scale == 1:
            run_steps(engine, case, [0])
        before = whole_weights(engine)
        poison(engine)
        outcome = train_step(
            engine,
            micro_batches_of(rows_of_step(1), case, engine.groups.coordinates.data),
            rates=Rates.known(1e-3),
            normalize_by=LossNormalization.global_tokens,
            device=torch.device("cpu"),
        ).outcome
        is_unchanged = equal(before, whole_weights(engine))
        answers.append(Answer(outcome.is_skipped, outcome.is_recoverable, is_unchanged))
    return answers


@pytest.mark.timeout(600)
def test_an_infinite_gradient_changes_no_weight_under_any_zero_stage() -> None:
    fp32 = [Case(dp=2, zero=zero, micro_batch=8) for zero in (0, 1, 2, 3)]
    smallest_scale = Case(pp=2, zero=1, micro_batch=4, dtype="fp16", min_scale=256)
    cases = [*cases_of("bf16"), *fp32, smallest_scale]

    for answers in run_ranks(poisoned_steps, cases, world_size=2, timeout=600):
        assert dict(zip(map(str, cases), answers, strict=True)) == {
            str(case): Answer(is_skipped=True, is_recoverable=False, is_unchanged=True)
            for case in cases
        }


def scaler_fields(engine: TrainingEngine) -> dict[str, float]:
    """The dynamic loss scale and its memory."""
    return dict(engine.zero.counters().loss_scaler or {})


def save_after_overflow(case: Case, folder: Path) -> tuple[dict[str, float], int]:
    """Train, overflow, train, save; the scaler and the updates made."""
    enable_cpu()
    engine = build_engine(case)
    run_steps(engine, case, [0])
    heal = poison(engine)
    run_steps(engine, case, [1])
    heal()
    run_steps(engine, case, [2])
    save_state(engine, folder, step=3, extra={}, keep_last=1)
    return scaler_fields(engine), engine.zero.skipped_steps


def stop_before_the_first_update(cases: list[Case], folder: Path) -> list[tuple[bool, bool]]:
    """Overflow, save, go on; whether weights then moved, and equal those of a resumed engine."""
    enable_cpu()
    answers = []
    for i, case in enumerate(cases):
        engine = build_engine(case)
        heal = poison(engine)
        run_steps(engine, case, [0])
        heal()
        save_state(engine, folder / str(i), step=1, extra={}, keep_last=1)
        before = whole_weights(engine)
        run_steps(engine, case, [1])
        after = whole_weights(engine)
        resumed = build_engine(case)
        info = find_checkpoint(folder / str(i))
        assert info is not None
        assert restore_state(resumed, info) == 1
        run_steps(resumed, case, [1])
        answers.append((not equal(before, after), equal(after, whole_weights(resumed))))
    return answers


def test_a_run_that_only_overflowed_so_far_can_be_saved_and_resumed(tmp_path: Path) -> None:
    cases = [Case(zero=zero, micro_batch=16, dtype="fp16") for zero in (1, 2, 3)]

    (answers,) = run_ranks(stop_before_the_first_update, cases, tmp_path, world_size=1)

    assert answers == [(True, True)] * 3


def resume_scaler(case: Case, folder: Path) -> tuple[dict[str, float], int]:
    """The scaler of a fresh engine that continues from the checkpoint."""
    enable_cpu()
    engine = build_engine(case)
    info = find_checkpoint(folder)
    assert info is not None
    restore_state(engine, info)
    return scaler_fields(engine), engine.zero.skipped_steps


def test_the_loss_scale_survives_in_any_layout(tmp_path: Path) -> None:
    saved = run_ranks(
        save_after_overflow, Case(pp=2, zero=1, micro_batch=4, dtype="fp16"), tmp_path, world_size=2
    )
    resumed = run_ranks(
        resume_scaler, Case(dp=2, zero=3, micro_batch=4, dtype="fp16"), tmp_path, world_size=2
    )

    # It began at 2**8 and one overflow, at the second of three steps, halved it.
    fields = {"cur_scale": 128.0, "cur_iter": 3, "last_overflow_iter": 1, "cur_hysteresis": 1}
    assert saved == resumed == [(fields, 1)] * 2
