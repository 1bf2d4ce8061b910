"""The planned memory of a rank's state is what a real engine allocates."""

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from glm_dist.optim.flat_adamw import FlatAdamW
from glm_dist.plan.state import state_memory
from glm_dist.plan.state_memory import StateMemory
from glm_dist.train.engine import TrainingEngine
from tests.ranks import run_ranks
from tests.train.grid import Case, build_engine, run_config, run_steps

FLAT = (
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
SHARDED = (
    Case(dp=2, zero=2, dtype="bf16"),
    Case(dp=2, zero=2),
    Case(dp=2, zero=3, dtype="bf16"),
    Case(tp=2, zero=3),
    Case(dp=2, zero=3, architecture=("lora",), dtype="bf16"),
    Case(dp=2, zero=1, dtype="bf16", offload=True),
    Case(dp=2, zero=2, dtype="bf16", offload=True),
    Case(dp=2, zero=3, dtype="bf16", offload=True),
)
"""Optimizers of DeepSpeed."""


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all storages, each once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _measure_flat(cases: tuple[Case, ...]) -> list[StateMemory]:
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


def _gradients(inner: Any, stage: int) -> list[torch.Tensor]:
    """The sums that DeepSpeed has on the device between backward and update."""
    if stage == 3:
        return [inner.grad_partitions_flat_buffer]
    groups = inner.averaged_gradients.values()
    return [each for group in groups if group is not None for each in group]


def _measure_sharded(cases: tuple[Case, ...]) -> list[StateMemory]:
    measured = []
    for case in cases:
        engine = build_engine(case)
        found: list[list[torch.Tensor]] = []
        _watch_step(engine, case.zero, found)
        run_steps(engine, case, [0])
        zero = engine.zero
        name = "ds_tensor" if case.zero == 3 else "data"
        weights = [getattr(shard.parameter, name) for shard in engine.shards]
        states = zero._adamw.state.values()
        moments = [state[kind] for state in states for kind in ("exp_avg", "exp_avg_sq")]
        sizes = _bytes(weights), _bytes(found[0]), _bytes([*zero._masters(), *moments])
        measured.append(StateMemory(*sizes))
        engine.close()
    return measured


def _watch_step(engine: TrainingEngine, stage: int, found: list[list[torch.Tensor]]) -> None:
    step = engine.step

    def watched(*arguments: Any, **options: Any) -> Any:
        found.append(_gradients(engine.zero._inner, stage))
        return step(*arguments, **options)

    engine.step = watched


@pytest.mark.parametrize("world_size", [1, 2])
def test_bytes_of_each_rank_are_those_of_a_real_engine(world_size: int) -> None:
    cases = tuple(case for case in FLAT if case.layout.world_size == world_size)
    measured = run_ranks(_measure_flat, cases, world_size=world_size)
    for rank, of_rank in enumerate(measured):
        for case, real in zip(cases, of_rank, strict=True):
            config = run_config(case)
            planned = state_memory(config, case.layout, rank)
            assert planned == real, f"{case}, rank {rank}"


def test_bytes_of_each_rank_are_those_of_a_deepspeed_engine() -> None:
    measured = run_ranks(_measure_sharded, SHARDED, world_size=2)
    for rank, of_rank in enumerate(measured):
        for case, real in zip(SHARDED, of_rank, strict=True):
            planned = state_memory(run_config(case), case.layout, rank)
            name = f"{case}, rank {rank}: planned {planned}, measured {real}"
            assert planned.weights == pytest.approx(real.weights, rel=0.01), name
            if case.offload:
                # Masters and moments are a part of what the host holds.
                assert planned.optimizer == 0, name
                assert planned.host > real.optimizer, name
                continue
            assert planned.gradients == pytest.approx(real.gradients, rel=0.01), name
            assert planned.optimizer == pytest.approx(real.optimizer, rel=0.01), name


def test_torch_is_not_loaded() -> None:
    program = "import sys; sys.modules['torch'] = None; import glm_dist.plan.memory"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
