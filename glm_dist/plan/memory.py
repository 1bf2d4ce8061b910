"""Memory of a run on each rank, by part; neither torch nor a GPU is needed.

Weights, gradients and optimizer are exact (``state.py``), activations are counted from what the
operations save (``activations.py``), buffers are the largest temporary tensors of a step, and the
margin stands for what no formula gives: the CUDA context, NCCL's channels, kernels, and
fragmentation of the caching allocator.
"""

from dataclasses import dataclass

from glm_dist.config.schema import RunConfig
from glm_dist.parallel.layout import Layout
from glm_dist.plan.activations import Sizes, final_norm_bytes, kept_bytes, recomputed_bytes
from glm_dist.plan.buffers import buffer_bytes, start_bytes
from glm_dist.plan.in_flight import most_kept
from glm_dist.plan.state import ParameterTable, state_memory

CONTEXT_BYTES = 1 << 30
"""CUDA context with torch's, Triton's and cuBLAS' kernels and workspaces."""
CHANNEL_BYTES = 1 << 28
"""Buffers of NCCL for each kind of group with several ranks."""
FRAGMENTATION = 0.05
"""Share of activations and buffers that the caching allocator cannot use."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the device of one rank when a step needs most."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Tensors that forward passes keep for backward, and those recomputed at once."""
    buffers: int
    """Gradients between layers, head, communication, gathered weights of ZeRO 3; or, if that is
    more, whole weights at the start."""
    margin: int
    """CUDA context, NCCL, fragmentation."""
    host: int = 0
    """Bytes of the host's memory that an offloaded optimizer needs; not in ``total``."""

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer, allocated for the whole run."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Sum of the parts on the device."""
        return self.state + self.activations + self.buffers + self.margin


def rank_memory(
    config: RunConfig,
    layout: Layout,
    rank: int,
    *,
    rows_per_item: int = 1,
    table: ParameterTable | None = None,
) -> RankMemory:
    """Compute the memory of a rank.

    Args:
        config: Checked configuration.
        layout: Layout of its processes.
        rank: Global rank.
        rows_per_item: Rows of an example, in finetuning.
        table: The model's parameters, for many layouts of one model; None lists them again.

    Raises:
        ConfigError: The layout does not divide the layers.
    """
    stage = layout.coordinates(rank).pipeline
    sizes = Sizes.of(config, layout, rows_per_item=rows_per_item)
    kept = most_kept_bytes(layout, stage, sizes=sizes)
    recomputed = most_recomputed_bytes(layout, stage, sizes=sizes)
    activations = kept + recomputed
    table = table or ParameterTable.of(config)
    state = state_memory(config, layout, rank, table=table)
    parameters = table.elements(layout, stage)
    buffers = buffer_bytes(
        config, layout, stage, sizes=sizes, parameters=parameters, recomputed=recomputed
    )
    at_start = start_bytes(
        config, parameters=parameters, largest=max(spec.size for spec in table.specs)
    )
    buffers = max(buffers, at_start - state.total - activations)
    return RankMemory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        activations=activations,
        buffers=buffers,
        margin=margin_bytes(layout, dynamic=activations + buffers),
        host=state.host,
    )


def most_kept_bytes(layout: Layout, stage: int, *, sizes: Sizes) -> int:
    """Compute the most that a stage keeps for backward.

    Args:
        layout: Layout of the processes.
        stage: Pipeline coordinate.
        sizes: Sizes of a micro-batch.
    """
    batch, chunks = sizes.config.batch, layout.virtual_stages
    rows = batch.micro_batch_size * layout.data_parallel_size
    kept = [
        kept_bytes(
            sizes,
            layers=layers,
            is_first=stage == 0 and chunk == 0,
            is_last=stage == layout.pipeline_parallel_size - 1 and chunk == chunks - 1,
            is_sent=chunks > 1,
        )
        for chunk, layers in enumerate(_layers_of_chunks(layout, stage, sizes))
    ]
    micro_batches = max(batch.global_batch_size // rows, 1)
    return most_kept(layout, stage, micro_batches=micro_batches, kept=kept)


def most_recomputed_bytes(layout: Layout, stage: int, *, sizes: Sizes) -> int:
    """Compute the most that a stage computes again at once in backward.

    Args:
        layout: Layout of the processes.
        stage: Pipeline coordinate.
        sizes: Sizes of a micro-batch.
    """
    recomputed = recomputed_bytes(sizes, layers=max(_layers_of_chunks(layout, stage, sizes)))
    # Backward frees what the final norm kept before it computes a layer again.
    is_last = stage == layout.pipeline_parallel_size - 1
    return max(recomputed - (final_norm_bytes(sizes) if is_last else 0), 0)


def _layers_of_chunks(layout: Layout, stage: int, sizes: Sizes) -> list[int]:
    num_layers = sizes.config.model.num_layers
    return [
        len(layout.layers_of_stage(num_layers, stage, chunk=chunk))
        for chunk in range(layout.virtual_stages)
    ]


def margin_bytes(layout: Layout, *, dynamic: int) -> int:
    """Estimate what no formula gives.

    Args:
        layout: Layout of the processes.
        dynamic: Bytes of activations and buffers.
    """
    groups = sum(size > 1 for size in layout.sizes().values())
    return CONTEXT_BYTES + groups * CHANNEL_BYTES + round(FRAGMENTATION * dynamic)
