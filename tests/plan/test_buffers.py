"""Activations and buffers together are the bytes of all tensors that a step has at once."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glm_dist.config.load import load_config
from glm_dist.model import cross_entropy, fused, head, linear
from glm_dist.parallel.layout import Layout
from glm_dist.plan.buffers import sharding_bytes
from glm_dist.plan.memory import rank_memory
from glm_dist.plan.state import ParameterTable, state_memory
from glm_dist.train import dry_run
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.task import Pretraining
from tests.ranks import run_ranks
from tests.train.grid import Case, build_engine, run_config, run_steps


class Alive(TorchDispatchMode):
    """Storages that operations have created and that still exist, apart from known ones."""

    def __init__(self, *, least: int = 0) -> None:
        super().__init__()
        self._least = least  # bytes of the smallest that counts
        self.known: set[int] = set()
        self.most = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._inside = 0

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        self.known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def compiled(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """A body as one kernel, whose intermediate results are in registers."""

        def run(*arguments: Any) -> Any:
            self._inside += 1
            outputs = body(*arguments)
            self._inside -= 1
            self._note(outputs)
            return outputs

        return run

    def _note(self, outputs: Any) -> None:
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known and storage.nbytes() >= self._least:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if not self._inside:
            self._note(outputs)
        return outputs


OF_130B = ("experiment=glm_130b", "model.num_layers=8", "parallel=tp4", "parallel.stage_layers=[]")
PP4 = ("parallel.pipeline_parallel_size=4",)


@pytest.mark.parametrize(
    ("typed", "rank"),
    [
        (("experiment=glm_large", "model.num_layers=4"), 0),
        (("experiment=glm_2b", "model.num_layers=8", "recompute=full"), 0),
        ((*OF_130B, "recompute=none"), 0),
        ((*OF_130B, *PP4, "recompute=none"), 4),
        ((*OF_130B, *PP4, "recompute=none", "parallel.sequence_parallel=true"), 4),
        ((*OF_130B, *PP4), 12),
    ],
    ids=["large", "2b, full", "130b tp4", "130b stage 1", "130b stage 1, sp", "130b last stage"],
)
def test_all_tensors_of_a_step_are_planned(
    typed: tuple[str, ...], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([*typed, "zero=stage1"])
    layout = Layout.from_config(config)
    alive = Alive()
    for module in (fused, cross_entropy):
        monkeypatch.setattr(module, "compiled", alive.compiled)
    for module in (linear, head):  # a GPU adds the product to the sum without another tensor
        monkeypatch.setattr(module, "add_product", lambda *_: None)
    with dry_run.fake_rank(layout, rank) as groups:
        engine = TrainingEngine(
            dry_run.build_on_meta(config, groups),
            Pretraining(),
            config.optimizer,
            deepspeed_config=deepspeed_config(config, world_size=layout.world_size),
            groups=groups,
        )
        alive.know(engine.model.parameters())
        alive.know(engine.zero.gradient(shard.parameter) for shard in engine.shards)
        dry_run.seed_step(1, 0, coordinates=groups.coordinates)
        batch = config.batch
        batches = [dry_run._batch(batch.micro_batch_size, batch.row_length) for _ in range(4)]
        with alive:
            engine.forward_backward(batches, loss_scales=[torch.ones((), device="meta")] * 4)
        engine.close()
    planned = rank_memory(config, layout, rank)
    assert planned.activations + planned.buffers == pytest.approx(alive.most, rel=0.03)


SHARDED = (
    Case(dp=2, zero=2, dtype="bf16"),
    Case(dp=2, zero=2),
    Case(dp=2, zero=3, dtype="bf16"),
)
LEAST = 16_000
"""Bytes of the smallest buffer; activations of the tiny model and its layers' weights have less."""


def _buffers_of_deepspeed(cases: tuple[Case, ...]) -> list[int]:
    measured = []
    for case in cases:
        engine = build_engine(case)
        run_steps(engine, case, [0])
        alive = Alive(least=LEAST)
        alive.know(shard.parameter for shard in engine.shards)
        if case.zero == 3:
            alive.know([engine.zero._inner.grad_partitions_flat_buffer])  # type: ignore[attr-defined]
        forward_backward = engine.forward_backward

        def watched(
            *arguments: Any,
            alive: Alive = alive,
            inner: Callable[..., Any] = forward_backward,
            **options: Any,
        ) -> Any:
            with alive:
                return inner(*arguments, **options)

        engine.forward_backward = watched  # type: ignore[method-assign]
        run_steps(engine, case, [1])
        measured.append(alive.most)
        engine.close()
    return measured


@pytest.mark.slow
def test_buffers_of_deepspeed_are_planned() -> None:
    for case, measured in zip(
        SHARDED, run_ranks(_buffers_of_deepspeed, SHARDED, world_size=2)[0], strict=True
    ):
        config = run_config(case)
        parameters = ParameterTable.of(config).local_sizes(case.layout, 0)
        planned = sharding_bytes(config, case.layout, parameters)
        if case.zero == 2:  # its sums are made for each step
            planned += state_memory(config, case.layout, 0).gradients
        else:  # small weights are gathered
            planned -= sum(size for size in parameters if 2 * size < LEAST) * 2
        # Which buckets overlap depends on the speed of the collectives.
        assert 0.6 * planned < measured < 1.05 * planned, case
