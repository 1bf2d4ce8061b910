"""The planned memory of a rank is what a real engine allocates."""

import subprocess
import sys
from collections.abc import Iterable

import pytest
import torch

from glm_dist.optim.flat_adamw import FlatAdamW
from glm_dist.plan.state import StateMemory, state_memory
from tests.ranks import run_ranks
from tests.train.grid import Case, build_engine, run_config

CASES = (
    Case(),
    Case(dtype="bf16"),
    Case(dp=2),
    Case(dp=2, zero=1),
    Case(dp=2, zero=1, dtype="bf16"),
    Case(tp=2),
    Case(tp=2, sp=True, dtype="bf16"),
    Case(pp=2, dtype="bf16"),
    Case(pp=2, vp=2),
    Case(tp=2, architecture=("geglu", "rotary_2d"), dtype="bf16"),
    Case(dp=2, zero=1, architecture=("lora",), dtype="bf16"),
    Case(pp=2, split=(1, 3)),
)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all storages, each once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _measure(cases: tuple[Case, ...]) -> list[StateMemory]:
    measured = []
    for case in cases:
        optimizer = build_engine(case).zero
        assert isinstance(optimizer, FlatAdamW)
        parts, weights = optimizer._parts, [s.parameter for s in optimizer.shards]
        owned = [] if case.dtype == "fp32" else [part.master for part in parts]
        moments = [moment for part in parts for moment in part.moments.values()]
        gradients = [optimizer._buffers.gradients]
        measured.append(StateMemory(_bytes(weights), _bytes(gradients), _bytes(owned + moments)))
    return measured


@pytest.mark.parametrize("world_size", [1, 2])
def test_bytes_of_each_rank_are_those_of_a_real_engine(world_size: int) -> None:
    cases = tuple(case for case in CASES if case.layout.world_size == world_size)
    measured = run_ranks(_measure, cases, world_size=world_size)
    for rank, of_rank in enumerate(measured):
        for case, real in zip(cases, of_rank, strict=True):
            config = run_config(case)
            planned = state_memory(config, case.layout, rank)
            assert planned == real, f"{case}, rank {rank}"


def test_torch_is_not_loaded() -> None:
    program = "import sys; sys.modules['torch'] = None; import glm_dist.plan.memory"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
