"""Scores of examples of several rows: the same in every layout and ZeRO stage, in order."""

from dataclasses import replace

import numpy as np
import torch

from glm_dist.train import job
from glm_dist.train.predict import predict_examples
from tests.ranks import run_ranks
from tests.train import plain
from tests.train.grid import VOCAB_SIZE, Case, groups_of, initial_weights, rank_device, run_config
from tests.train.toy_task import NUM_VALIDATION, ToyChoice, ToyItems


def predict(cases: list[Case], rounds_before_stop: int = 100) -> list[np.ndarray | None]:
    """Scores of the initial model, case after case."""
    found = []
    for case in cases:
        device = rank_device()
        engine = job.build_engine(
            run_config(case),
            groups_of(case.layout),
            device=device,
            world_size=case.layout.world_size,
            task=ToyChoice(),
        )
        countdown = [rounds_before_stop]

        def stops(countdown: list[int] = countdown) -> bool:
            countdown[0] -= 1
            return countdown[0] < 0

        with engine.evaluating():
            scores = predict_examples(
                engine,
                ToyItems(500).rows,
                num_examples=NUM_VALIDATION,
                micro_batch_size=case.micro_batch,
                device=device,
                stops=stops,
            )
            assert not engine.model.training  # or answers written next would have dropout
        assert engine.model.training
        found.append(None if scores is None else scores.numpy())
    return found


def test_all_ranks_get_the_scores_of_all_examples_in_order() -> None:
    weights = {
        name: torch.from_numpy(value)
        for name, value in run_ranks(initial_weights, Case(), world_size=1)[0].items()
    }
    expected = np.array(
        [
            [-float(plain.loss_sum(weights, [row], vocab_size=VOCAB_SIZE)) for row in rows]
            for rows in map(ToyItems(500).rows, range(NUM_VALIDATION))
        ]
    )
    cases = [
        Case(tp=2, micro_batch=4),
        Case(tp=2, micro_batch=2, sp=True),
        Case(pp=2, micro_batch=2),
        Case(pp=2, micro_batch=1, vp=2),
        *(Case(dp=2, micro_batch=1, zero=zero) for zero in (0, 1, 2, 3)),
        Case(dp=2, micro_batch=4, zero=3),
    ]

    for of_rank in run_ranks(predict, cases, world_size=2):
        for case, found in zip(cases, of_rank, strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0, err_msg=str(case))


def test_a_stop_between_batches_gives_up_on_all_ranks() -> None:
    cases = [replace(Case(dp=2), micro_batch=2)]

    assert run_ranks(predict, cases, 0, world_size=2) == [[None], [None]]
