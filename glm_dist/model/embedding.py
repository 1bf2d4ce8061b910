"""Input of the first stage: word + position + block-position embedding (GLM 2.1, figure 2).

With rotary positions it is only the word embedding.
"""

from contextlib import nullcontext
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import distributed as dist

from glm_dist.model.pointwise import ONE_BY_ONE, Pointwise
from glm_dist.model.prompt import Prompt
from glm_dist.parallel.rng import get_cuda_rng_tracker
from glm_dist.parallel.sequence import local_rows, mark_partial


def keep_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight unchanged; parameters.py initialises every weight."""
    return weight


class _ShrinkGradient(torch.autograd.Function):
    """Identity in forward; e a + detach(e) (1 - a) without its rounding and memory."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, share: float) -> torch.Tensor:
        ctx.share = share
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.share, None


def shrink_gradient(tensor: torch.Tensor, share: float) -> torch.Tensor:
    """Return the same values and scale their gradient (arXiv 2210.02414, section 3).

    Args:
        tensor: Any shape.
        share: Above 0 and at most 1; 1 changes nothing.
    """
    if share == 1.0:
        return tensor
    shrunk: torch.Tensor = _ShrinkGradient.apply(tensor, share)  # type: ignore[no-untyped-call]
    return shrunk


class GLMEmbedding(torch.nn.Module):
    """Sum of up to three learned tables; the word table is split over the vocabulary."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        padded_vocab_size: int,
        max_position_embeddings: int | None,
        gradient_share: float,
        tensor_group: dist.ProcessGroup,
        device: torch.device,
        prompt: Prompt | None = None,
    ) -> None:
        """Create the tables.

        Args:
            config: megatron-core's configuration.
            padded_vocab_size: Rows of the word table over all tensor-parallel ranks.
            max_position_embeddings: P; both position tables have P + 1 rows, as in the
                official code. None for no such tables.
            gradient_share: Share of this gradient that reaches the word table.
            tensor_group: Ranks that share the word table.
            device: Device of the tables.
            prompt: Vectors in the places of prompt slots.
        """
        super().__init__()
        hidden = config.hidden_size
        self.word_embeddings = VocabParallelEmbedding(
            padded_vocab_size,
            hidden,
            init_method=keep_weight,
            reduce_scatter_embeddings=config.sequence_parallel,
            config=config,
            tp_group=tensor_group,
        )
        self.position_embeddings: torch.nn.Embedding | None = None
        self.block_position_embeddings: torch.nn.Embedding | None = None
        if max_position_embeddings is not None:
            rows = max_position_embeddings + 1
            self.position_embeddings, self.block_position_embeddings = (
                torch.nn.Embedding(rows, hidden, dtype=config.params_dtype, device=device)
                for _ in range(2)
            )
            if config.sequence_parallel:
                mark_partial(self.position_embeddings.weight, self.block_position_embeddings.weight)
        self.prompt = prompt
        self.gradient_share = gradient_share
        self.dropout = config.hidden_dropout
        self.pointwise: Pointwise = ONE_BY_ONE
        self.sequence_parallel = config.sequence_parallel

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, block_positions: torch.Tensor
    ) -> torch.Tensor:
        """Embed rows.

        Args:
            tokens: [b, s].
            positions: [b, s], 0 to P.
            block_positions: [b, s], 0 to P.

        Returns:
            [s, b, h], under sequence parallelism this rank's part [s/t, b, h].
        """
        # Rows are looked up in the order [s, b], so that nothing of [.., h] is transposed.
        positions, block_positions = (self._local(ids) for ids in (positions, block_positions))
        parts = [self._words(tokens)]
        if self.position_embeddings is not None and self.block_position_embeddings is not None:
            parts.append(self.position_embeddings(positions))
            parts.append(self.block_position_embeddings(block_positions))
        dropout = self.dropout if self.training else 0.0
        # Under sequence parallelism ranks hold different positions, so their masks differ.
        forks = self.sequence_parallel and dropout > 0.0
        with get_cuda_rng_tracker().fork() if forks else nullcontext():
            return self.pointwise.sum_and_drop(parts, dropout=dropout)

    def _local(self, ids: torch.Tensor) -> torch.Tensor:
        """Return ids [b, s] as [s, b], under sequence parallelism this rank's part [s/t, b]."""
        # What is looked up by strided ids may be strided too, and stages send contiguous tensors.
        ids = ids.t().contiguous()
        return local_rows(ids, self.word_embeddings.tp_group) if self.sequence_parallel else ids

    def _words(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed token ids [b, s] as [s, b, h], under sequence parallelism as [s/t, b, h]."""
        words = tokens if self.prompt is None else self.prompt.words(tokens)
        # megatron-core's table transposes by itself where it scatters the rows.
        looked_up = self.word_embeddings(words if self.sequence_parallel else self._local(words))
        embedded = shrink_gradient(looked_up, self.gradient_share)
        if self.prompt is None:
            return embedded
        prompted: torch.Tensor = self.prompt(self._local(tokens), embedded)
        return prompted
