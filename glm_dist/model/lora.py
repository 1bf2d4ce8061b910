"""Linear layers with a trained update of low rank: W x + alpha / r B A x (arXiv 2106.09685).

A [r, inputs] and B [outputs, r] are split over tensor ranks as the weight is: behind a
column-parallel weight B is split and A is replicated, behind a row-parallel weight the other way
round. Only tensors of width r cross ranks. The gradient of the replicated factor is complete on
every rank, or under sequence parallelism partial and marked so.

Shapes: s row length, b micro-batch, r rank, t tensor ranks.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from torch.nn import functional

from glm_dist.config.architecture import ModelConfig
from glm_dist.model.linear import ColumnLinear, RowLinear
from glm_dist.parallel.rng import get_cuda_rng_tracker
from glm_dist.parallel.sequence import mark_partial


@dataclass(frozen=True)
class Update:
    """Settings of the updates."""

    rank: int
    scale: float
    """Factor of B A."""
    dropout: float
    """On the input."""


class LoraColumnLinear(ColumnLinear):
    """A column-parallel layer and its update."""

    def __init__(self, *arguments: Any, update: Update, **options: Any) -> None:
        """Create the layer; ``parameters.initialize`` sets all values.

        Args:
            *arguments: As megatron-core's.
            update: Settings.
            **options: As megatron-core's.
        """
        super().__init__(*arguments, **options)
        self.update = update
        self.lora_a = _factor(self.weight, update.rank, self.input_size)
        self.lora_b = _factor(self.weight, self.output_size_per_partition, update.rank)
        if self.sequence_parallel:
            mark_partial(self.lora_a)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the updated product, [s, b, outputs/t], and a bias that is not added yet."""
        output, bias = super().forward(input_)
        dropped = functional.dropout(input_, self.update.dropout, self.training)
        narrow = functional.linear(dropped, self.lora_a)  # [s, b, r], or [s/t, b, r]
        if self.sequence_parallel:
            narrow = gather_from_sequence_parallel_region(narrow, group=self.tp_group)
        else:
            narrow = copy_to_tensor_model_parallel_region(narrow, group=self.tp_group)
        return output + self.update.scale * functional.linear(narrow, self.lora_b), bias


class LoraRowLinear(RowLinear):
    """A row-parallel layer and its update."""

    def __init__(self, *arguments: Any, update: Update, **options: Any) -> None:
        """Create the layer; see ``LoraColumnLinear``."""
        super().__init__(*arguments, **options)
        self.update = update
        self.lora_a = _factor(self.weight, update.rank, self.input_size_per_partition)
        self.lora_b = _factor(self.weight, self.output_size, update.rank)
        if self.sequence_parallel:
            mark_partial(self.lora_b)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the updated product, [s, b, outputs] or [s/t, b, outputs], and the bias."""
        output, bias = super().forward(input_)
        # Ranks hold different features and need different masks. Under sequence parallelism
        # megatron-core runs all layers with the stream that differs.
        forks = not self.sequence_parallel and self.training and self.update.dropout > 0.0
        with get_cuda_rng_tracker().fork() if forks else nullcontext():
            dropped = functional.dropout(input_, self.update.dropout, self.training)
        narrow = functional.linear(dropped, self.lora_a)  # this rank's part of a sum [s, b, r]
        if self.sequence_parallel:
            narrow = reduce_scatter_to_sequence_parallel_region(narrow, group=self.tp_group)
        else:
            narrow = reduce_from_tensor_model_parallel_region(narrow, group=self.tp_group)
        return output + self.update.scale * functional.linear(narrow, self.lora_b), bias


def column_linear(name: str, model: ModelConfig) -> ModuleSpec:
    """Return the spec of a layer's column-parallel linear layer.

    Args:
        name: Its name in the layer, as in ``model.lora_targets``.
        model: Architecture.
    """
    update = _update(name, model)
    if update is None:
        return ModuleSpec(module=ColumnLinear)
    return ModuleSpec(module=LoraColumnLinear, params={"update": update})


def row_linear(name: str, model: ModelConfig) -> ModuleSpec:
    """Return the spec of a layer's row-parallel linear layer; see ``column_linear``."""
    update = _update(name, model)
    if update is None:
        return ModuleSpec(module=RowLinear)
    return ModuleSpec(module=LoraRowLinear, params={"update": update})


def _update(name: str, model: ModelConfig) -> Update | None:
    if model.lora_rank == 0 or name not in model.lora_targets:
        return None
    return Update(model.lora_rank, model.lora_scale, model.lora_dropout)


def _factor(weight: torch.Tensor, rows: int, columns: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight.new_empty(rows, columns))
