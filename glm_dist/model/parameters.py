"""This rank's parameters under the names of the whole model, with their shards and first values.

``config.parameter_specs`` lists the whole model; this module matches the list with the parameters
of a stage's modules. Initialisation, weight decay, checkpoints and conversion read the result;
nothing else knows how the model is sharded.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass

import torch

from glm_dist.config.parameter_specs import (
    Constant,
    ParameterSlice,
    ParameterSpec,
    RowPiece,
    Uniform,
)
from glm_dist.seeds import derive_seed


@dataclass(frozen=True)
class ParameterShard:
    """One rank's slice of a parameter of the whole model."""

    spec: ParameterSpec
    parameter: torch.nn.Parameter
    part: ParameterSlice
    """Kept here because ZeRO 3 empties the parameter itself."""

    @property
    def name(self) -> str:
        """Name in the whole model; layers are numbered globally."""
        return self.spec.name

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return self.spec.shape

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the slice, even if ZeRO 3 has emptied the parameter."""
        return self.part.shape

    @property
    def offset(self) -> tuple[int, ...]:
        """First element of the slice in the whole parameter, along each dim."""
        return self.part.offset

    @property
    def rows(self) -> tuple[RowPiece, ...]:
        """Rows of a slice that is not one box; empty for one box."""
        return self.part.rows

    @property
    def tensor_dim(self) -> int | None:
        """Dim that is split over tensor-parallel ranks."""
        return self.spec.tensor_dim

    @property
    def is_tied_copy(self) -> bool:
        """True for the last stage's copy of the word table."""
        return bool(getattr(self.parameter, "ds_pipe_replicated", False))

    @property
    def is_trained(self) -> bool:
        """True if the optimizer updates it; False if it is frozen."""
        return self.parameter.requires_grad

    @property
    def decays(self) -> bool:
        """True if weight decay applies."""
        return self.spec.decays


def match_shards(
    named: Iterable[tuple[str, torch.nn.Parameter]],
    specs: Iterable[ParameterSpec],
    *,
    tensor_rank: int,
    tensor_size: int,
) -> list[ParameterShard]:
    """Find the spec of each new parameter and its slice of the whole.

    Args:
        named: This rank's parameters under the names of the whole model.
        specs: Specs of this rank's part of the model.
        tensor_rank: Index in the tensor-parallel group.
        tensor_size: Size of that group.

    Returns:
        A shard for each parameter, in the order of ``named``.

    Raises:
        RuntimeError: Modules and specs differ in names or shapes: one of the two is wrong.
    """
    parameters, expected = dict(named), {spec.name: spec for spec in specs}
    if parameters.keys() != expected.keys():
        raise RuntimeError(
            f"the modules lack {sorted(expected.keys() - parameters.keys())} and the table of "
            f"parameters lacks {sorted(parameters.keys() - expected.keys())}"
        )
    shards = []
    for name, parameter in parameters.items():
        spec = expected[name]
        part = spec.slice_of(tensor_rank, tensor_size=tensor_size)
        if tuple(parameter.shape) != part.shape:
            raise RuntimeError(
                f"the module's {name} has shape {tuple(parameter.shape)}; the table of parameters "
                f"says {part.shape}, a slice of {spec.shape}"
            )
        shards.append(ParameterShard(spec, parameter, part))
    return shards


def mark_for_norm(shards: Iterable[ParameterShard]) -> None:
    """Mark sharded gradients for DeepSpeed, which counts replicated ones only on tensor rank 0."""
    for shard in shards:
        shard.parameter.model_parallel = shard.tensor_dim is not None  # type: ignore[attr-defined]


def freeze(shards: Iterable[ParameterShard], *, trainable: Container[str]) -> None:
    """Freeze all parameters but some, before an optimizer is made for them.

    Args:
        shards: Parameters of this rank.
        trainable: Names of those that learn.
    """
    for shard in shards:
        shard.parameter.requires_grad_(shard.name in trainable)


def local_slice(shard: ParameterShard, whole: torch.Tensor) -> torch.Tensor:
    """Return this rank's slice of a whole parameter, gradient or moment.

    Args:
        shard: Slice to take.
        whole: Tensor of the parameter's global shape.

    Returns:
        The parameter's local shape; a view unless its rows are not contiguous.
    """
    if shard.rows:
        return torch.cat([whole.narrow(0, part.global_start, part.num_rows) for part in shard.rows])
    return whole[
        tuple(slice(o, o + n) for o, n in zip(shard.offset, shard.local_shape, strict=True))
    ]


@torch.no_grad()
def initialize(shards: Iterable[ParameterShard], *, seed: int) -> None:
    """Draw the initial values of the specs, as the official code does (GLM 4f61ed7).

    Each whole parameter is drawn from a generator seeded by its name and sharded afterwards, so
    the initial model does not depend on the layout. It depends on the device: CPU and GPU have
    different generators.

    Args:
        shards: Parameters of this rank.
        seed: Seed of the run.
    """
    for shard in shards:
        parameter, initial = shard.parameter, shard.spec.initial
        if isinstance(initial, Constant):
            parameter.fill_(initial.value)
            continue
        generator = torch.Generator(parameter.device)
        generator.manual_seed(derive_seed("initialize", seed, shard.name))
        whole = torch.empty(shard.global_shape, dtype=torch.float32, device=parameter.device)
        if isinstance(initial, Uniform):
            whole.uniform_(-initial.bound, initial.bound, generator=generator)
            parameter.copy_(local_slice(shard, whole))
            continue
        whole.normal_(0.0, initial.std, generator=generator)
        grouped = whole.view(initial.row_groups, len(initial.row_factors), -1)
        for index, factor in enumerate(initial.row_factors):
            if factor != 1.0:
                grouped[:, index] *= factor
        parameter.copy_(local_slice(shard, whole))
