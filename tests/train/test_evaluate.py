"""Validation losses: the same numbers in any layout and with any micro-batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from glm_dist.data.rows import Row
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.train.evaluate import validation_losses
from tests.ranks import run_ranks
from tests.train import plain
from tests.train.grid import (
    VOCAB_SIZE,
    Case,
    build_engine,
    initial_weights,
    rows_of_step,
)

NUM_ROWS = 5  # of a corpus; divides into no micro-batch of these cases


class Rows:
    """Rows of two corpora; one objective has no targets."""

    objectives = ("span", "document", "empty")

    def names(self) -> tuple[str, ...]:
        return ("news", "verse")

    def row(self, objective: str, corpus: str, index: int) -> Row:
        row = rows_of_step({"span": 100, "document": 200, "empty": 300}[objective])[
            index + 2 * (corpus == "verse")
        ]
        return replace(row, loss_mask=row.loss_mask & (objective != "empty"))


def losses(cases: list[Case]) -> list[dict[str, float]]:
    """Validation losses of the initial model, case after case."""
    enable_cpu()
    return [
        validation_losses(
            build_engine(case),
            Rows(),
            num_rows=2 * NUM_ROWS - 1,
            micro_batch_size=case.micro_batch,
            device=torch.device("cpu"),
        )
        for case in cases
    ]


def test_validation_losses_are_means_over_tokens_in_every_layout() -> None:
    weights = {
        name: torch.from_numpy(value)
        for name, value in run_ranks(initial_weights, Case(), world_size=1)[0].items()
    }
    expected = {}
    for objective in ("span", "document"):
        sums = np.zeros(2)
        for corpus in ("news", "verse"):
            rows = [Rows().row(objective, corpus, index) for index in range(NUM_ROWS)]
            targets = sum(int(row.loss_mask.sum()) for row in rows)
            total = float(plain.loss_sum(weights, rows, vocab_size=VOCAB_SIZE))
            expected[f"{objective}/{corpus}"] = total / targets
            sums += total, targets
        expected[objective] = sums[0] / sums[1]
    cases = [
        Case(tp=2, micro_batch=4),
        Case(pp=2, micro_batch=2),
        Case(pp=2, micro_batch=2, vp=2),
        Case(pp=2, micro_batch=4, vp=2),
        Case(tp=2, micro_batch=2, sp=True),
        Case(dp=2, zero=3, micro_batch=4),
        Case(dp=2, micro_batch=2),
    ]

    for of_rank in run_ranks(losses, cases, world_size=2):
        for found in of_rank:
            assert found == pytest.approx(expected, abs=1e-5)
