"""The adapters answer the same under every stage, and let go of what they hold."""

import gc
import os
import time
import weakref

import pytest
import torch

from glm_dist.optim.deepspeed_engine import ADAPTERS
from glm_dist.parallel.cpu import enable_cpu
from tests.ranks import run_ranks
from tests.train.grid import Case, build_engine, run_steps

CASES = [
    Case(dp=2, zero=0, micro_batch=8),
    Case(dp=2, zero=1, micro_batch=8),
    Case(dp=2, zero=2, micro_batch=8),
    Case(dp=2, zero=3, micro_batch=8),
    Case(dp=2, zero=1, micro_batch=8, dtype="bf16"),
    Case(dp=2, zero=1, micro_batch=8, dtype="fp16"),
    Case(dp=2, zero=2, micro_batch=8, dtype="fp16", offload=True),
]


def living_tensors() -> int:
    """Bytes of all tensors that somebody can still reach."""
    for _ in range(2):  # what finalizers let go of is found by the second pass
        gc.collect()
    storages = {
        held.untyped_storage().data_ptr(): held.untyped_storage().nbytes()
        for held in gc.get_objects()
        if type(held) in (torch.Tensor, torch.nn.Parameter)
    }
    return sum(storages.values())


SMALL = 20_000
"""Bytes that a closed engine may leave."""


def close_engines(cases: list[Case]) -> dict[str, tuple[bool, int]]:
    """Return for each case whether closing freed the model, and the bytes that stayed."""
    enable_cpu()
    run_steps(build_engine(cases[0]), cases[0], range(1))  # first use makes things that stay
    answers = {}
    for case in cases:
        before = living_tensors()
        engine = build_engine(case)
        run_steps(engine, case, range(2))
        model = weakref.ref(engine.model)
        engine.close()
        del engine
        # Threads of gloo let go of the tensors of an exchange a moment after it has ended.
        deadline = time.monotonic() + 5
        while (after := living_tensors()) - before >= SMALL and time.monotonic() < deadline:
            time.sleep(0.05)
        answers[str(case)] = (model() is None, after - before)
    return answers


def test_a_closed_engine_frees_model_and_optimizer() -> None:
    # The model has 4 * 12 * 32**2 + 256 * 32 + … > 50 000 weights of 4 bytes, three times.
    for answers in run_ranks(close_engines, CASES, world_size=2):
        for case, (is_gone, kept) in answers.items():
            assert is_gone, case
            assert kept < SMALL, (case, kept)


def train_without_a_launcher() -> list[str | None]:
    """The variable that only launchers export, while ZeRO 3 trains and after its engine is closed.

    srun and plain python do not export it.
    """
    enable_cpu()
    del os.environ["LOCAL_RANK"]
    found = []
    for case in (Case(zero=3, micro_batch=16), Case(zero=2, micro_batch=16)):
        engine = build_engine(case)
        run_steps(engine, case, range(2))
        found.append(os.environ["LOCAL_RANK"])
        engine.close()
        del engine
        gc.collect()
        found.append(os.environ.get("LOCAL_RANK"))
    return found


def test_deepspeed_finds_its_local_rank_under_every_launcher() -> None:
    assert run_ranks(train_without_a_launcher, world_size=1) == [["0", None, "0", None]]


def test_every_stage_of_deepspeed_has_an_adapter() -> None:
    assert sorted(ADAPTERS) == [1, 2, 3]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_only_the_stages_that_shard_gradients_reduce_in_backward(stage: int) -> None:
    assert ADAPTERS[stage].reduces_in_backward == (stage >= 2)
