"""All that one rank holds of the model: one stage, or several chunks of it that take turns."""

from collections.abc import Sequence

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from glm_dist.config.schema import Dtype, ModelConfig, RecomputeConfig
from glm_dist.model.parameters import ParameterShard
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.groups import ParallelGroups


class GLMChunks(torch.nn.Module):
    """The virtual stages of one pipeline rank, in the order in which rows pass through them."""

    def __init__(self, chunks: Sequence[GLMStage]) -> None:
        """Hold the chunks; only the schedule runs them."""
        super().__init__()
        self._chunks = torch.nn.ModuleList(chunks)

    @property
    def chunks(self) -> tuple[GLMStage, ...]:
        """What the schedule runs."""
        return tuple(self._chunks)  # type: ignore[arg-type]

    @property
    def config(self) -> TransformerConfig:
        """megatron-core's configuration that the schedule reads."""
        return self.chunks[0].config

    @property
    def tied_weight(self) -> torch.Tensor | None:
        """This rank's slice of the word table [v/t, h]; None on the stages between."""
        tables = [chunk.tied_weight for chunk in self.chunks if chunk.tied_weight is not None]
        return tables[0] if tables else None

    def shards(self) -> list[ParameterShard]:
        """What each of this rank's parameters is in the whole model."""
        return [shard for chunk in self.chunks for shard in chunk.shards()]


def build_stage(
    model: ModelConfig,
    *,
    vocab_size: int,
    padded_vocab_size: int,
    dtype: Dtype,
    groups: ParallelGroups,
    device: torch.device,
    recompute: RecomputeConfig,
) -> GLMStage | GLMChunks:
    """Create this rank's part of the model; ``parameters.initialize`` gives it values.

    Args:
        model: Architecture.
        vocab_size: Tokens that exist.
        padded_vocab_size: Rows of the word table, a multiple of 128.
        dtype: Number format of parameters and activations.
        groups: This rank's process groups.
        device: Where parameters live.
        recompute: Activations that are not kept.
    """
    chunks = [
        GLMStage(
            model,
            vocab_size=vocab_size,
            padded_vocab_size=padded_vocab_size,
            dtype=dtype,
            groups=groups,
            device=device,
            recompute=recompute,
            chunk=chunk,
        )
        for chunk in range(groups.layout.virtual_stages)
    ]
    return chunks[0] if len(chunks) == 1 else GLMChunks(chunks)
