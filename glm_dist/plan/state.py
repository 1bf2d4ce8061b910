"""Memory of weights, gradients and optimizer on each rank.

The flat optimizer of ZeRO 0 and 1 keeps the parameters that learn in padded buckets
(``optim/flat_buffers.py``). Padding is counted here as it is made there, so the sums are exact also
for small models. ZeRO 2 and 3 and offloading are DeepSpeed's (``deepspeed_state.py``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from glm_dist.config.parameter_specs import WORD_EMBEDDINGS, ParameterSpec, parameter_specs
from glm_dist.config.schema import Dtype, Offload, RunConfig
from glm_dist.config.trainable import trainable_names
from glm_dist.parallel.layout import Layout
from glm_dist.plan.deepspeed_state import deepspeed_state
from glm_dist.plan.state_memory import FP32_BYTES, MOMENTS, StateMemory

ALIGNMENT = 64
"""Elements to which the flat buffers align parameters and parts."""


@dataclass(frozen=True)
class ParameterTable:
    """The parameters of a model, for computing the memory of many layouts."""

    specs: tuple[ParameterSpec, ...]
    num_layers: int
    trained: frozenset[str]
    """Names of those that learn."""

    @classmethod
    def of(cls, config: RunConfig) -> "ParameterTable":
        """List the parameters of a configuration.

        Args:
            config: Its model, vocabulary and ``optimizer.trainable``.

        Raises:
            ConfigError: A pattern matches no parameter of the model.
        """
        specs = parameter_specs(config.model, config.padded_vocab_size)
        return cls(specs, config.model.num_layers, trainable_names(config))

    def held(self, layout: Layout, stage: int) -> list[ParameterSpec]:
        """List the parameters of a stage; one stage alone has the tied table once.

        Args:
            layout: Layout of the processes.
            stage: Pipeline coordinate.
        """
        layers = {
            layer
            for chunk in range(layout.virtual_stages)
            for layer in layout.layers_of_stage(self.num_layers, stage, chunk=chunk)
        }
        is_first, is_last = stage == 0, stage == layout.pipeline_parallel_size - 1
        return [
            spec
            for spec in self.specs
            if spec.layer in layers
            or (is_first and spec.on_first_stage)
            or (is_last and spec.on_last_stage)
        ]

    def local_sizes(self, layout: Layout, stage: int) -> list[int]:
        """List the elements of a stage's parameters on one tensor rank, before ZeRO cuts them.

        Args:
            layout: Layout of the processes.
            stage: Pipeline coordinate.
        """
        tensor_size = layout.tensor_parallel_size
        return [_local_size(spec, tensor_size) for spec in self.held(layout, stage)]

    def elements(self, layout: Layout, stage: int) -> int:
        """Count the elements of a stage's parameters; see ``local_sizes``."""
        return sum(self.local_sizes(layout, stage))

    def trained_elements(self, layout: Layout, stage: int) -> int:
        """Count those of them that learn."""
        tensor_size = layout.tensor_parallel_size
        held = self.held(layout, stage)
        return sum(_local_size(spec, tensor_size) for spec in held if spec.name in self.trained)

    @cached_property
    def trained_share(self) -> float:
        """Share of the layers' matrices that learns, 0 to 1."""
        matrices = [s for s in self.specs if s.layer is not None and len(s.shape) == 2]
        trained = sum(spec.size for spec in matrices if spec.name in self.trained)
        return trained / sum(spec.size for spec in matrices)

    @property
    def trains_table(self) -> bool:
        """True if the vocabulary table learns."""
        return WORD_EMBEDDINGS in self.trained


def state_memory(
    config: RunConfig, layout: Layout, rank: int, *, table: ParameterTable | None = None
) -> StateMemory:
    """Compute what weights, gradients and optimizer occupy on a rank.

    Args:
        config: Configuration of the run.
        layout: Layout of its processes.
        rank: Global rank.
        table: The model's parameters; None lists them again.

    Raises:
        ConfigError: The layout does not divide the layers.
    """
    table = table or ParameterTable.of(config)
    names = table.trained
    held = table.held(layout, layout.coordinates(rank).pipeline)
    sizes = {spec.name: _local_size(spec, layout.tensor_parallel_size) for spec in held}
    frozen = [size for name, size in sizes.items() if name not in names]
    if config.zero.stage > 1 or config.zero.offload_optimizer is not Offload.none:
        by_decay = [
            [sizes[spec.name] for spec in held if spec.name in names and spec.decays is decays]
            for decays in (True, False)
        ]
        return deepspeed_state(
            config,
            by_decay,
            frozen,
            replicas=layout.data_parallel_size,
            replica=layout.coordinates(rank).data,
        )
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
    is_fp32 = config.precision.dtype is Dtype.fp32
    copies = MOMENTS + (0 if is_fp32 else 1)  # an fp32 model is its own master
    return StateMemory(
        weights=(flat + sum(frozen)) * (FP32_BYTES if is_fp32 else 2),
        gradients=flat * FP32_BYTES,
        optimizer=flat // parts * copies * FP32_BYTES,
    )


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
    elements: dict[tuple[bool, bool], int] = {}
    for spec in reversed(trained):
        is_partial = sequence_parallel and spec.tensor_dim is None
        key = (spec.name == WORD_EMBEDDINGS or is_partial, spec.decays)
        if key not in current:
            current[key], elements[key] = [], 0
            filled.append(current[key])
        current[key].append(spec)
        elements[key] += sizes[spec.name]
        if elements[key] >= bucket_size:
            del current[key]
    return filled


def _aligned(number: int, unit: int) -> int:
    return -(-number // unit) * unit
