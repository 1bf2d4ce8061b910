"""One rank of a job without its processes, its memory and a GPU.

The rank's part of the model is made of meta tensors, which have shapes and no numbers, and its
process groups are torch's fake ones, whose collectives return at once. Operations are those of a
GPU: our attention kernels and fused pointwise operations, neither of which is compiled.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from glm_dist.config.schema import Fusing, Offload, RunConfig
from glm_dist.config.trainable import trainable_names
from glm_dist.model.batch import StageBatch
from glm_dist.model.fused import FusedPointwise
from glm_dist.model.parameters import ParameterShard, freeze
from glm_dist.model.pointwise import ONE_BY_ONE, use_pointwise
from glm_dist.model.stage import GLMShard, build_shard
from glm_dist.observe.log import quiet_libraries
from glm_dist.optim.flat_adamw import FlatAdamW
from glm_dist.optim.open import open_zero_optimizer
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import ParallelGroups, build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.rng import seed_step
from glm_dist.plan.deepspeed_state import deepspeed_state
from glm_dist.plan.state_memory import StateMemory
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.task import Pretraining, run_task

META = torch.device("meta")


@dataclass(frozen=True)
class DryRank:
    """Contents of one rank of a job."""

    layers: list[range]
    """Global indices of the layers in each of its chunks."""
    parameters: int
    """Elements of its parameters, before ZeRO 3 cuts them."""
    shapes: dict[tuple[str, tuple[int, ...]], int]
    """Parameters by name without the layer's number, and local shape."""
    state: StateMemory
    activations: int
    """Most bytes saved for backward at once, with what is recomputed."""


def build_rank(config: RunConfig, layout: Layout, rank: int) -> DryRank:
    """Build a rank's part of a job and run a few micro-batches, without memory.

    Args:
        config: Checked configuration.
        layout: Layout of the job.
        rank: Global rank.
    """
    quiet_libraries()
    with fake_rank(layout, rank) as groups:
        model = build_on_meta(config, groups)
        shards = model.shards()
        activations = most_kept_in_a_step(config, model, groups)
        return DryRank(
            layers=layers_of(config, groups),
            parameters=sum(shard.parameter.numel() for shard in shards),
            shapes=group_shapes(shards),
            state=count_state(config, model, groups),
            activations=activations,
        )


@contextmanager
def fake_rank(layout: Layout, rank: int) -> Iterator[ParallelGroups]:
    """Make this process one rank of a job that does not exist.

    Args:
        layout: Layout of the job.
        rank: Global rank.

    Yields:
        The rank's groups.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    enable_cpu(META)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield build_groups(layout, timedelta(minutes=1))
    finally:
        dist.destroy_process_group()
        enable_cpu()


def build_on_meta(config: RunConfig, groups: ParallelGroups) -> GLMShard:
    """Build a rank's part of the model without memory.

    Args:
        config: Checked configuration.
        groups: The rank's groups.
    """
    with META:
        model = build_shard(config, groups=groups, device=META, recompute=config.recompute)
    freeze(model.shards(), trainable=trainable_names(config))
    is_fused = config.compile.pointwise is not Fusing.off
    use_pointwise(model, FusedPointwise() if is_fused else ONE_BY_ONE)
    return model.train()


def count_state(config: RunConfig, model: GLMShard, groups: ParallelGroups) -> StateMemory:
    """Count the bytes of a rank's weights, gradients and optimizer in its tensors.

    DeepSpeed's optimizers cannot be made of meta tensors; theirs are computed from the shapes of
    the model's parameters. Weights under ZeRO 0 and 1 move into flat buffers.

    Args:
        config: Checked configuration.
        model: The rank's part of the model.
        groups: The rank's groups.
    """
    layout = groups.layout
    shards = model.shards()
    if config.zero.stage >= 2 or config.zero.offload_optimizer is not Offload.none:
        trained = [shard for shard in shards if shard.is_trained]
        return deepspeed_state(
            config,
            [
                [s.parameter.numel() for s in trained if s.decays is decays]
                for decays in (True, False)
            ],
            [shard.parameter.numel() for shard in shards if not shard.is_trained],
            replicas=layout.data_parallel_size,
            replica=groups.coordinates.data,
        )
    optimizer = open_zero_optimizer(
        model,
        shards,
        config.optimizer,
        deepspeed_config=deepspeed_config(config, world_size=layout.world_size),
        groups=groups,
        tied_weight=model.tied_weight,
        blocks=model.blocks,
    )
    assert isinstance(optimizer, FlatAdamW)
    trained = [shard for shard in shards if shard.is_trained]
    weights = _storages(shard.parameter for shard in shards)
    gradients = _storages(optimizer.gradient(shard.parameter) for shard in trained)
    slices = (each.data for shard in trained for each in optimizer.state_slices(shard))
    owned = {key: size for key, size in _storages(slices).items() if key not in weights}
    optimizer.close()
    return StateMemory(*(sum(sizes.values()) for sizes in (weights, gradients, owned)))


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Return the bytes of all storages by an identity that meta tensors have too."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in storages}


@dataclass
class _Kept:
    """Tensors that operations keep for backward, while they keep them."""

    ignored: frozenset[int]
    """Storages of the parameters."""
    now: int = 0
    most: int = 0
    _holders: dict[int, int] = field(default_factory=dict)

    def pack(self, tensor: torch.Tensor) -> object:
        """Take what an operation saves."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.ignored:
            return tensor
        holder = _Holder(tensor)
        if key not in self._holders:
            self._holders[key] = 0
            self.now += size
            self.most = max(self.most, self.now)
        self._holders[key] += 1
        weakref.finalize(holder, self._drop, key, size)
        return holder

    def _drop(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self.now -= size


@dataclass(eq=False)
class _Holder:
    tensor: torch.Tensor


def _unpack(held: object) -> torch.Tensor:
    if isinstance(held, _Holder):
        return held.tensor
    assert isinstance(held, torch.Tensor)
    return held


def most_kept_in_a_step(
    config: RunConfig, model: GLMShard, groups: ParallelGroups, *, rows_per_item: int = 1
) -> int:
    """Run forward and backward of a step's first micro-batches, and measure what they keep.

    Args:
        config: Checked configuration.
        model: The rank's part of the model.
        groups: The rank's groups.
        rows_per_item: Rows of an example, in finetuning.

    Returns:
        Most bytes saved for backward at once, with what is recomputed and without parameters.
    """
    layout = groups.layout
    stages_behind = layout.pipeline_parallel_size - groups.coordinates.pipeline
    # Behind the warmup every micro-batch repeats the one before.
    needed = stages_behind + 1 if layout.virtual_stages == 1 else 2 * layout.pipeline_parallel_size
    needed = min(config.num_micro_batches(layout.world_size), needed)
    kept = _Kept(frozenset(_storages(model.parameters())))
    seed_step(config.run.seed, 0, coordinates=groups.coordinates)
    rows = config.batch.micro_batch_size * rows_per_item
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, _unpack):
        run_task(
            model,
            Pretraining(),
            [_batch(rows, config.batch.row_length) for _ in range(needed)],
            groups=groups,
            loss_scales=[torch.ones((), device=META)] * needed,
        )
    return kept.most


def _batch(rows: int, row_length: int) -> StageBatch:
    """Make a micro-batch of one segment a row, of which the second half is to be predicted."""
    prefix = row_length // 2
    targets = rows * (row_length - prefix)

    def ids(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=META)

    return StageBatch(
        tokens=ids(rows, row_length),
        positions=ids(rows, row_length),
        block_positions=ids(rows, row_length),
        prefix_length=torch.full((rows,), prefix),
        target_index=ids(targets),
        target_ids=ids(targets),
    )


def layers_of(config: RunConfig, groups: ParallelGroups) -> list[range]:
    """Return the global indices of the layers in each of a rank's chunks."""
    layout = groups.layout
    return [
        layout.layers_of_stage(config.model.num_layers, groups.coordinates.pipeline, chunk=chunk)
        for chunk in range(layout.virtual_stages)
    ]


def group_shapes(shards: Iterable[ParameterShard]) -> dict[tuple[str, tuple[int, ...]], int]:
    """Count a rank's parameters by name without the layer's number, and shape.

    Args:
        shards: The rank's parameters.
    """
    found: dict[tuple[str, tuple[int, ...]], int] = {}
    for shard in shards:
        name = shard.name if shard.spec.layer is None else shard.name.split(".", 3)[3]
        key = name, shard.local_shape
        found[key] = found.get(key, 0) + 1
    return found
