"""Creation of a DeepSpeed engine for a rank's part of the model; the only import of DeepSpeed."""

import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from glm_dist.config.schema import OptimizerConfig
from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.deepspeed_adapter import DeepSpeedOptimizer
from glm_dist.optim.param_groups import param_groups as decay_groups
from glm_dist.optim.sharded import FlatPartitionedShards, FlatShards, ParameterShards
from glm_dist.parallel.groups import ParallelGroups

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read once, when deepspeed is imported
import deepspeed

# Training never calls this op, yet DeepSpeed (0.19) compiles it at the first start on a CPU. That
# needs a compiler, and a start killed meanwhile leaves a lock on which later starts hang.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

ADAPTERS: Mapping[int, type[DeepSpeedOptimizer]] = {
    1: FlatShards,
    2: FlatPartitionedShards,
    3: ParameterShards,
}


def open_deepspeed_optimizer(
    module: torch.nn.Module,
    shards: Sequence[ParameterShard],
    config: OptimizerConfig,
    *,
    deepspeed_config: Mapping[str, Any],
    groups: ParallelGroups,
    tied_weight: torch.Tensor | None,
) -> DeepSpeedOptimizer:
    """Wrap a module in a DeepSpeed engine and adapt its optimizer. Collective over all ranks.

    See ``open.open_zero_optimizer`` for the arguments.
    """
    stage = int(deepspeed_config["zero_optimization"]["stage"])
    if stage == 3 and tied_weight is not None:
        deepspeed.zero.register_external_parameter(module, tied_weight)
    param_groups = _without_empty(
        decay_groups(shards, weight_decay=config.weight_decay),
        module,
        like=shards[0].parameter,
        stage=stage,
    )
    optimizer = torch.optim.AdamW(
        param_groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
    _LOCAL_RANK.acquire(shards[0].parameter.device)
    try:
        engine: Any = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            mpu=_ModelParallelUnit(groups),
            config=dict(deepspeed_config),
            dist_init_required=False,
        )[0]
    except BaseException:
        _LOCAL_RANK.release()
        raise
    weakref.finalize(engine, _LOCAL_RANK.release)
    return ADAPTERS[stage](engine, shards, groups=groups, clip=config.gradient_clipping)


def _without_empty(
    groups: Sequence[dict[str, Any]], module: torch.nn.Module, *, like: torch.Tensor, stage: int
) -> list[dict[str, Any]]:
    """Return parameter groups of which none is empty, as DeepSpeed (0.19) requires.

    A pipeline stage may have nothing to train, and yet ZeRO sums the norms of all stages group by
    group; so every rank needs every group, if only with one number that no gradient reaches.
    Stages 2 and 3 exclude pipelines: all ranks have the same empty groups, and leave them out.

    Args:
        groups: Parameters that learn.
        module: Gets the number, since DeepSpeed looks for the name of everything it updates.
        like: A parameter of the model, for dtype and device.
        stage: ZeRO stage.
    """
    if stage >= 2:
        return [group for group in groups if group["params"]]
    for index, group in enumerate(groups):
        if not group["params"]:
            number = torch.nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device))
            module.register_parameter(f"nothing_to_train_{index}", number)
            group["params"] = [number]
    return list(groups)


class _LocalRank:
    """LOCAL_RANK, from which DeepSpeed takes its device; set while an engine exists.

    ZeRO 3 also reads it in forward, and only some launchers export it. After the last engine is
    closed the variable has its old value again.
    """

    def __init__(self) -> None:
        self._engines = 0
        self._exported: str | None = None

    def acquire(self, device: torch.device) -> None:
        """Set it to the device's index, which is 0 for any rank that sees only one GPU."""
        if self._engines == 0:
            self._exported = os.environ.get("LOCAL_RANK")
        self._engines += 1
        number = device.index or 0 if device.type == "cuda" else self._exported or 0
        os.environ["LOCAL_RANK"] = str(number)

    def release(self) -> None:
        """Restore it after the last engine."""
        self._engines -= 1
        if self._engines == 0 and self._exported is None:
            os.environ.pop("LOCAL_RANK", None)
        elif self._engines == 0 and self._exported is not None:
            os.environ["LOCAL_RANK"] = self._exported


_LOCAL_RANK = _LocalRank()
"""One per process, like the environment."""


class _ModelParallelUnit:
    """The groups under the names of DeepSpeed's ``mpu`` interface."""

    def __init__(self, groups: ParallelGroups) -> None:
        self._groups = groups

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Return all ranks of a replica, so that norms and overflow checks see the whole model."""
        return self._groups.model

    def get_model_parallel_world_size(self) -> int:
        """Return the number of ranks of a replica."""
        return self._groups.model.size()

    def get_model_parallel_rank(self) -> int:
        """Return the rank within its replica."""
        own, layout = self._groups.coordinates, self._groups.layout
        return own.pipeline * layout.tensor_parallel_size + own.tensor

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        """Return the ranks that share each layer."""
        return self._groups.tensor

    def get_tensor_model_parallel_world_size(self) -> int:
        """Return the tensor-parallel size."""
        return self._groups.layout.tensor_parallel_size

    def get_tensor_model_parallel_rank(self) -> int:
        """Return the rank in the tensor-parallel group."""
        return self._groups.coordinates.tensor

    def get_pipeline_model_parallel_group(self) -> dist.ProcessGroup:
        """Return the stages of the same tensor rank."""
        return self._groups.pipeline

    def get_pipeline_model_parallel_world_size(self) -> int:
        """Return the number of pipeline stages."""
        return self._groups.layout.pipeline_parallel_size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Return the replicas of the same parameters."""
        return self._groups.data

    def get_data_parallel_world_size(self) -> int:
        """Return the number of replicas."""
        return self._groups.layout.data_parallel_size

    def get_data_parallel_rank(self) -> int:
        """Return the index of this replica."""
        return self._groups.coordinates.data
