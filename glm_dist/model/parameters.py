"""Every parameter of a stage under its layout-independent name, with its shard and initial value.

One table answers what each parameter is a slice of. Initialisation, weight decay, checkpoints and
conversion all read it; nothing else knows how the model is cut.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from glm_dist.config.schema import ModelConfig, Residual
from glm_dist.seeds import derive_seed

TENSOR_PARALLEL_DIMS = {
    "word_embeddings.weight": 0,
    "linear_qkv.weight": 0,
    "linear_qkv.bias": 0,
    "linear_proj.weight": 1,
    "linear_fc1.weight": 0,
    "linear_fc1.bias": 0,
    "linear_fc2.weight": 1,
}
"""Dim on which a parameter is split over tensor-parallel ranks; others are replicated."""

RESIDUAL_OUTPUTS = ("linear_proj.weight", "linear_fc2.weight")
"""Weights that write to the residual stream; they start smaller by sqrt(2 * num_layers)."""

VALUE_PATH = (*RESIDUAL_OUTPUTS, "linear_fc1.weight")
"""What DeepNorm starts smaller by the same factor, beside the values of ``linear_qkv.weight``
(arXiv 2203.00555, figure 2)."""

GATE_AND_VALUE = ("linear_fc1.weight", "linear_fc1.bias")
"""Input projection of a GeGLU: rows of the gate, then of the value; each is split over ranks."""


class RowPiece(NamedTuple):
    """Consecutive local rows (dim 0) and where they lie in the whole parameter."""

    local_start: int
    global_start: int
    num_rows: int


@dataclass(frozen=True)
class ParameterShard:
    """One rank's slice of a parameter of the whole model."""

    name: str
    """Name in the whole model; layers are numbered globally."""
    parameter: torch.nn.Parameter
    local_shape: tuple[int, ...]
    """Shape of the slice; kept because ZeRO 3 empties the parameter itself."""
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    """Where the slice begins in the whole parameter."""
    tensor_dim: int | None
    """Dim that is split over tensor-parallel ranks."""
    rows: tuple[RowPiece, ...] = ()
    """Where the slice's rows lie if they do not follow each other in the whole; then ``offset`` is
    not used. Empty: one piece."""

    @property
    def is_bias_or_norm(self) -> bool:
        """Biases and LayerNorm parameters: all one-dimensional ones, never decayed."""
        return len(self.global_shape) == 1


def shard_of(
    name: str,
    parameter: torch.nn.Parameter,
    *,
    tensor_rank: int,
    tensor_size: int,
    gated: bool = False,
) -> ParameterShard:
    """Find out what part of the whole model's parameter a rank holds.

    Args:
        name: Name in the whole model.
        parameter: This rank's slice.
        tensor_rank: Place in the tensor-parallel group.
        tensor_size: Size of that group.
        gated: Whether the MLP is a GeGLU, each rank of which has rows of the gate and of the value.
    """
    shape = tuple(parameter.shape)
    dim = next((d for end, d in TENSOR_PARALLEL_DIMS.items() if name.endswith(end)), None)
    global_shape, offset = list(shape), [0] * len(shape)
    if dim is not None:
        global_shape[dim] *= tensor_size
        offset[dim] = tensor_rank * shape[dim]
    rows: tuple[RowPiece, ...] = ()
    if gated and tensor_size > 1 and name.endswith(GATE_AND_VALUE):
        half = shape[0] // 2
        gate = RowPiece(0, tensor_rank * half, half)
        rows = (gate, RowPiece(half, (tensor_size + tensor_rank) * half, half))
        offset[0] = 0
    return ParameterShard(
        name=name,
        parameter=parameter,
        local_shape=shape,
        global_shape=tuple(global_shape),
        offset=tuple(offset),
        tensor_dim=dim,
        rows=rows,
    )


def mark_for_norm(shards: Iterator[ParameterShard] | list[ParameterShard]) -> None:
    """Tell DeepSpeed which gradients are slices: it counts replicated ones on slice 0 only."""
    for shard in shards:
        shard.parameter.model_parallel = shard.tensor_dim is not None  # type: ignore[attr-defined]


def cut(shard: ParameterShard, whole: torch.Tensor) -> torch.Tensor:
    """This rank's slice of a whole parameter, gradient or moment.

    Args:
        shard: Which slice.
        whole: Tensor of the parameter's global shape.

    Returns:
        The parameter's local shape; a view unless its rows lie apart.
    """
    if shard.rows:
        return torch.cat([whole.narrow(0, part.global_start, part.num_rows) for part in shard.rows])
    return whole[
        tuple(slice(o, o + n) for o, n in zip(shard.offset, shard.local_shape, strict=True))
    ]


@torch.no_grad()
def initialize(shards: list[ParameterShard], model: ModelConfig, *, seed: int) -> None:
    """Draw the official initialisation (GLM 4f61ed7): normal weights, zero biases, unit norms.

    Each whole parameter is drawn from a generator seeded by its name and cut afterwards, so no
    layout changes the model that training starts from. The drawing device does: a CPU and a GPU
    have different generators.

    Args:
        shards: Parameters of this rank.
        model: Architecture; its ``init_std`` is divided by sqrt(2 * num_layers) where a block
            writes to the residual stream, with DeepNorm on all of the path of values.
        seed: Seed of the run.
    """
    smaller = 1 / math.sqrt(2 * model.num_layers)
    is_deep_norm = model.residual is Residual.deep_norm
    for shard in shards:
        parameter = shard.parameter
        if shard.name.endswith("bias"):
            parameter.zero_()
        elif shard.is_bias_or_norm:
            parameter.fill_(1.0)
        else:
            std = model.init_std
            if shard.name.endswith(VALUE_PATH if is_deep_norm else RESIDUAL_OUTPUTS):
                std *= smaller
            generator = torch.Generator(parameter.device)
            generator.manual_seed(derive_seed("initialize", seed, shard.name))
            whole = torch.empty(shard.global_shape, dtype=torch.float32, device=parameter.device)
            whole.normal_(0.0, std, generator=generator)
            if is_deep_norm and shard.name.endswith("linear_qkv.weight"):
                # Rows [a, 3, d]: query, key and value of one head stand together.
                whole.view(model.num_attention_heads, 3, -1)[:, 2] *= smaller
            parameter.copy_(cut(shard, whole))
