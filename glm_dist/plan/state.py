"""Memory of weights, gradients and optimizer on each rank, under ZeRO 0 and 1.

The flat optimizer keeps the parameters that learn in padded buckets (``optim/flat_buffers.py``).
Padding is counted here as it is made there, so the sums are exact also for small models.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from glm_dist.config.parameter_specs import WORD_EMBEDDINGS, ParameterSpec, parameter_specs
from glm_dist.config.schema import Dtype, Offload, RunConfig
from glm_dist.config.trainable import trainable_names
from glm_dist.parallel.layout import Layout

ALIGNMENT = 64
"""Elements to which the flat buffers align parameters and parts."""

FP32_BYTES = 4
MOMENTS = 2


@dataclass(frozen=True)
class StateMemory:
    """Bytes on one rank that stay allocated for the whole run."""

    weights: int
    """Parameters in the precision of the model, frozen ones too."""
    gradients: int
    """Whole fp32 sums, under ZeRO 1 too."""
    optimizer: int
    """Moments, and fp32 master weights if the model is in 16 bits."""
    host: int = 0
    """Optimizer in the host's memory instead; not in ``total``."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.weights + self.gradients + self.optimizer


def state_memory(config: RunConfig, layout: Layout, rank: int) -> StateMemory:
    """Compute what weights, gradients and optimizer occupy on a rank.

    Args:
        config: Configuration of the run.
        layout: Layout of its processes.
        rank: Global rank.

    Raises:
        ConfigError: The layout does not divide the layers.
    """
    names = trainable_names(config)
    held = _held_specs(config, layout, layout.coordinates(rank).pipeline)
    sizes = {spec.name: _local_size(spec, layout.tensor_parallel_size) for spec in held}
    parts = layout.data_parallel_size if config.zero.stage == 1 else 1
    flat = sum(
        _aligned(sum(_aligned(sizes[spec.name], ALIGNMENT) for spec in bucket), ALIGNMENT * parts)
        for bucket in _buckets(
            [spec for spec in held if spec.name in names],
            sizes,
            bucket_size=config.zero.reduce_bucket_size,
            sequence_parallel=layout.sequence_parallel,
        )
    )
    frozen = sum(size for name, size in sizes.items() if name not in names)
    if config.zero.stage > 1 or config.zero.offload_optimizer is not Offload.none:
        return _by_deepspeed(config, layout, sum(s for n, s in sizes.items() if n in names), frozen)
    is_fp32 = config.precision.dtype is Dtype.fp32
    copies = MOMENTS + (0 if is_fp32 else 1)  # an fp32 model is its own master
    return StateMemory(
        weights=(flat + frozen) * (FP32_BYTES if is_fp32 else 2),
        gradients=flat * FP32_BYTES,
        optimizer=flat // parts * copies * FP32_BYTES,
    )


def _by_deepspeed(config: RunConfig, layout: Layout, trained: int, frozen: int) -> StateMemory:
    """Estimate DeepSpeed's: it has fp32 masters also of an fp32 model."""
    replicas = layout.data_parallel_size
    number = FP32_BYTES if config.precision.dtype is Dtype.fp32 else 2
    own = -(-trained // replicas)
    held = own + -(-frozen // replicas) if config.zero.stage == 3 else trained + frozen
    state = own * (MOMENTS + 1) * FP32_BYTES
    offloaded = config.zero.offload_optimizer is not Offload.none
    return StateMemory(
        weights=held * number,
        gradients=0 if offloaded else own * FP32_BYTES,
        optimizer=0 if offloaded else state,
        host=state + own * FP32_BYTES if offloaded else 0,
    )


def _held_specs(config: RunConfig, layout: Layout, stage: int) -> list[ParameterSpec]:
    """List the parameters of a stage; one stage alone has the tied table once."""
    num_layers = config.model.num_layers
    layers = {
        layer
        for chunk in range(layout.virtual_stages)
        for layer in layout.layers_of_stage(num_layers, stage, chunk=chunk)
    }
    is_first, is_last = stage == 0, stage == layout.pipeline_parallel_size - 1
    return [
        spec
        for spec in parameter_specs(config.model, config.padded_vocab_size)
        if spec.layer in layers
        or (is_first and spec.on_first_stage)
        or (is_last and spec.on_last_stage)
    ]


def _local_size(spec: ParameterSpec, tensor_size: int) -> int:
    return spec.size if spec.tensor_dim is None else spec.size // tensor_size


def _buckets(
    trained: Sequence[ParameterSpec],
    sizes: dict[str, int],
    *,
    bucket_size: int,
    sequence_parallel: bool,
) -> Iterable[list[ParameterSpec]]:
    """Fill buckets from the last parameter to the first, apart by decay and by time of arrival."""
    filled: list[list[ParameterSpec]] = []
    current: dict[tuple[bool, bool], list[ParameterSpec]] = {}
    for spec in reversed(trained):
        is_partial = sequence_parallel and spec.tensor_dim is None
        key = (spec.name == WORD_EMBEDDINGS or is_partial, spec.decays)
        if key not in current:
            current[key] = []
            filled.append(current[key])
        current[key].append(spec)
        if sum(sizes[each.name] for each in current[key]) >= bucket_size:
            del current[key]
    return filled


def _aligned(number: int, unit: int) -> int:
    return -(-number // unit) * unit
