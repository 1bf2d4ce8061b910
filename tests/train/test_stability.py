"""Bad rows, gradients and updates: all ranks act in the same step, and no trace is left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.config.schema import LossNormalization
from glm_dist.optim.state import Rates
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.train.state import restore_state, save_state
from glm_dist.train.step import train_step
from tests.ranks import run_ranks
from tests.train import grid
from tests.train.faulty_jobs import base, happened, kinds, run_job
from tests.train.grid import Case, micro_batches_of, rows_of_step, run_steps, whole_weights
from tests.train.test_precision import equal


def skips(folder: Path) -> dict[str, Any]:
    skip = "stability.on_spike=skip"
    return {
        "clean": run_job(base(folder, "clean"), "", -1),
        "bad": run_job(base(folder, "bad"), "bad_row", 21),
        "huge": run_job(base(folder, "huge", skip), "huge_row", 21),
        "begun": run_job(base(folder, "resumed", skip), "huge_row", 21, last=5),
        "resumed": run_job(base(folder, "resumed", skip), "huge_row", 21),
        "used_up": run_job(base(folder, "used_up", "stability.max_interventions=0"), "bad_row", 21),
        "tripled": run_job(base(folder, "tripled"), "tripled", 6),
        "stopped": run_job(base(folder, "stopped", "stability.on_spike=stop"), "tripled", 6),
    }


def last_loss(folder: Path, name: str) -> float:
    losses = json.loads((folder / "runs" / name / "losses_0.jsonl").read_text())
    return float(losses["8"])


def test_a_bad_row_is_skipped_named_and_survived(tmp_path: Path) -> None:
    (ends,) = run_ranks(skips, tmp_path, world_size=1)

    assert ends["bad"][0] == ends["huge"][0] == ends["tripled"][0] == "finished"
    ((_, step, bad),) = [each for each in happened(tmp_path, "bad") if each[0] == "non_finite"]
    assert (step, bad["rows"], bad["bad_rows"]) == (6, "20-23", "20-21")
    assert "the loss of 1 of 2 micro-batches is nan for rows 20-21" in bad["origin"]
    assert kinds(tmp_path, "bad") == [("non_finite", 6), ("skipped_rows", 6)]
    assert kinds(tmp_path, "huge") == [("spike", 6), ("skipped_rows", 6)]
    # Either way one update is missing, and nothing else.
    assert equal(ends["bad"][1], ends["huge"][1])
    assert last_loss(tmp_path, "bad") == pytest.approx(last_loss(tmp_path, "clean"), rel=0.02)
    assert not equal(ends["bad"][1], ends["clean"][1])
    assert equal(ends["resumed"][1], ends["huge"][1])
    assert "retries are used up: stability.max_interventions=0" in ends["used_up"][0]
    assert "nan for rows 20-21" in ends["used_up"][0]
    assert kinds(tmp_path, "used_up") == [("non_finite", 6), ("stopped", 6)]
    # Masters times three: known at the next record, here at once.
    assert kinds(tmp_path, "tripled")[0] == ("spike", 6)
    assert ends["stopped"][0].startswith("Step 6 is a spike (")


LAYOUTS = [
    ("parallel=dp2", "zero=stage0"),
    ("parallel=dp2", "zero=stage1", "precision=bf16"),
    ("parallel=dp2", "zero=stage2"),
    ("parallel=dp2", "zero=stage3"),
    ("parallel=tp2", "zero=stage1"),
    ("parallel=pp2", "zero=stage1"),
]


def bad_gradients(folder: Path) -> list[str]:
    ends = []
    for number, layout in enumerate(LAYOUTS):
        overrides = base(folder, f"layout_{number}", *layout, "checkpoint.interval=0")
        end, weights = run_job(overrides, "bad_gradient", 3, last=4)
        assert all(np.isfinite(weight).all() for weight in weights.values())
        ends.append(end)
    (end, _) = run_job(
        base(folder, "odd", "parallel=dp2", "zero=stage0", "stability.compare_replicas_interval=2"),
        "odd_replica",
        3,
    )
    return [*ends, end]


def test_ranks_act_in_the_same_step_wherever_a_gradient_is_bad(tmp_path: Path) -> None:
    one, other = run_ranks(bad_gradients, tmp_path, world_size=2)

    assert one == other
    assert one[:-1] == ["finished"] * len(LAYOUTS)
    for number in range(len(LAYOUTS)):
        for rank in (0, 1):
            found = happened(tmp_path, f"layout_{number}", rank)
            assert [(k, s) for k, s, _ in found if k != "started"] == [
                ("non_finite", 3),
                ("skipped_rows", 3),
            ]
        ((_, _, details),) = [each for each in found if each[0] == "non_finite"]
        assert "linear_fc1.weight" in details["origin"], LAYOUTS[number]
    assert one[-1].startswith("After step 4 the weights of rank 0 on ")
    assert "differ, without a majority; the first is " in one[-1]


REFUSALS = [
    Case(dp=2, zero=0, micro_batch=4),
    Case(dp=2, zero=1, micro_batch=4),
    Case(dp=2, zero=2, micro_batch=4),
    Case(dp=2, zero=3, micro_batch=8),
    Case(dp=2, zero=1, micro_batch=4, dtype="bf16"),
    Case(dp=2, zero=2, micro_batch=4, dtype="bf16"),
    Case(dp=2, zero=1, micro_batch=4, dtype="fp16"),
    Case(dp=2, zero=1, micro_batch=4, offload=True),
    Case(dp=2, zero=3, micro_batch=8, offload=True),
    Case(pp=2, zero=1, micro_batch=4),
]


def refused_steps(cases: list[Case], folder: Path) -> list[tuple[str, bool, bool, bool, bool]]:
    """Refuse a step, and rewind over another; compare with a run without them."""
    enable_cpu()
    answers = []
    for case in cases:
        reference = grid.build_engine(case)
        run_steps(reference, case, [0, 0, 2])
        engine = grid.build_engine(case)
        run_steps(engine, case, [0, 0])
        before, scale = whole_weights(engine), engine.zero.loss_scale
        skipped = engine.zero.skipped_steps
        outcome = train_step(
            engine,
            micro_batches_of(rows_of_step(1), case, engine.groups.coordinates.data),
            rates=Rates.known(1e-3),
            normalize_by=LossNormalization.global_tokens,
            device=torch.device("cpu"),
            accept=lambda share, norm: False,
        ).outcome
        is_unchanged = equal(before, whole_weights(engine))
        rejected = engine.zero.skipped_steps - skipped
        run_steps(engine, case, [2])
        is_clean = equal(whole_weights(reference), whole_weights(engine))
        save_state(engine, folder / str(case), step=4, extra={}, keep_last=1)
        run_steps(engine, case, [1])
        info = find_checkpoint(folder / str(case))
        assert info is not None
        restore_state(engine, info)
        for each in (reference, engine):
            run_steps(each, case, [3])
        answers.append(
            (
                str(case),
                outcome.is_refused and bool(torch.isfinite(outcome.norm)),
                is_unchanged and rejected == 1 and engine.zero.loss_scale == scale,
                is_clean,
                equal(whole_weights(reference), whole_weights(engine)),
            )
        )
    return answers


@pytest.mark.timeout(600)
def test_refused_and_rewound_steps_leave_no_trace_under_any_zero_stage(tmp_path: Path) -> None:
    for answers in run_ranks(refused_steps, REFUSALS, tmp_path, world_size=2):
        assert answers == [(str(case), True, True, True, True) for case in REFUSALS]
