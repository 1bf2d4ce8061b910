"""Choice of the optimizer over replicas.

DeepSpeed is imported only where its optimizers are used: the import takes seconds.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from glm_dist.config.schema import OptimizerConfig
from glm_dist.model.parameters import ParameterShard
from glm_dist.observe.log import quiet_libraries
from glm_dist.optim.flat_adamw import FlatAdamW, FlatSettings
from glm_dist.optim.loss_scale import DynamicLossScale
from glm_dist.optim.zero import ZeroOptimizer
from glm_dist.parallel.groups import ParallelGroups

DEFAULT_BUCKET_SIZE = 500_000_000
"""DeepSpeed's own, for configurations that leave it out."""


def open_zero_optimizer(
    module: torch.nn.Module,
    shards: Sequence[ParameterShard],
    config: OptimizerConfig,
    *,
    deepspeed_config: Mapping[str, Any],
    groups: ParallelGroups,
    tied_weight: torch.Tensor | None,
    blocks: Iterable[torch.nn.Module],
) -> ZeroOptimizer:
    """Create the optimizer of a ZeRO stage. Collective over all ranks.

    Args:
        module: Module that ``ZeroOptimizer.forward`` runs; holds the parameters.
        shards: The parameters; ZeRO 3 empties them, so their shapes are taken before.
        config: AdamW's hyperparameters.
        deepspeed_config: Output of ``train.deepspeed_config``.
        groups: This rank's process groups.
        tied_weight: Slice of the word table that ``module`` reads outside the embedding; None
            if this rank has none.
        blocks: Modules that hold all parameters; of nested ones the inner first.
    """
    zero = deepspeed_config["zero_optimization"]
    if zero["stage"] >= 2 or "offload_optimizer" in zero:
        from glm_dist.optim.deepspeed_engine import open_deepspeed_optimizer

        quiet_libraries()
        return open_deepspeed_optimizer(
            module,
            shards,
            config,
            deepspeed_config=deepspeed_config,
            groups=groups,
            tied_weight=tied_weight,
        )
    settings = _flat_settings(deepspeed_config)
    return FlatAdamW(shards, config, settings=settings, groups=groups, blocks=blocks)


def _flat_settings(config: Mapping[str, Any]) -> FlatSettings:
    zero, fp16 = config["zero_optimization"], config.get("fp16")
    scale = None
    if fp16 is not None:
        scale = DynamicLossScale(
            cur_scale=2.0 ** fp16["initial_scale_power"],
            window=fp16["loss_scale_window"],
            hysteresis=fp16["hysteresis"],
            min_scale=fp16["min_loss_scale"],
        )
    return FlatSettings(
        shards_state=zero["stage"] == 1,
        bucket_size=zero.get("reduce_bucket_size", DEFAULT_BUCKET_SIZE),
        overlaps=zero.get("overlap_comm", False),
        loss_scale=scale,
    )
