"""Core attention under GLM's prefix mask: Part A sees itself, Part B sees A and its own past.

Query i of a row with prefix length p may see key j iff j <= i or j < p. That is two standard calls
(GLM 2.1): the prefix attends to itself without a mask, the rest attends causally, aligned to the
bottom right, to everything. Padding lies after Part B and is therefore invisible to real tokens.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import scaled_dot_product_attention

from glm_dist.parallel.rng import get_cuda_rng_tracker


class AttentionCache(Protocol):
    """Keys and values of tokens that earlier forward passes saw."""

    def extend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens [b, a, s_new, d] and return all [b, a, s_seen + s_new, d]."""


def prefix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    prefix_lengths: list[int],
    dropout: float,
) -> torch.Tensor:
    """Attention of every row under its own prefix mask.

    Args:
        query: [b, a, s, d].
        key: [b, a, m + s, d]; the first m are cached tokens, which every query sees.
        value: [b, a, m + s, d].
        prefix_lengths: Length of Part A of each row, 0 to s.
        dropout: Probability of dropping an attention weight.

    Returns:
        [b, a, s, d].
    """
    if len(set(prefix_lengths)) == 1:
        return _one_prefix(query, key, value, prefix=prefix_lengths[0], dropout=dropout)
    rows = [
        _one_prefix(query[i : i + 1], key[i : i + 1], value[i : i + 1], prefix=p, dropout=dropout)
        for i, p in enumerate(prefix_lengths)
    ]
    return torch.cat(rows)


def _one_prefix(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, prefix: int, dropout: float
) -> torch.Tensor:
    length, cached = query.size(2), key.size(2) - query.size(2)
    parts = []
    if prefix > 0:
        seen = slice(0, cached + prefix)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, :prefix], key[:, :, seen], value[:, :, seen], dropout_p=dropout
            )
        )
    if prefix < length:
        visible = torch.ones(length - prefix, key.size(2), dtype=torch.bool, device=query.device)
        visible = visible.tril(cached + prefix)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, prefix:], key, value, attn_mask=visible, dropout_p=dropout
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class PrefixAttention(torch.nn.Module):
    """Core attention for megatron-core's ``SelfAttention``; its mask argument is prefix lengths."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        """Take the constructor call that ``SelfAttention`` makes; only the dropout rate matters."""
        super().__init__()
        self.dropout = config.attention_dropout
        self.cache: AttentionCache | None = None  # set while generating

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [s, b, a/t, d].
            key: [s, b, a/t, d].
            value: [s, b, a/t, d].
            attention_mask: Prefix lengths [b], on the host.
            attn_mask_type: Unused; the mask is always GLM's.
            attention_bias: Unused.
            packed_seq_params: Unused.

        Returns:
            [s, b, h/t].
        """
        dropout = self.dropout if self.training else 0.0
        # Heads differ between tensor-parallel ranks, so their masks come from the sharded stream.
        stream: AbstractContextManager[None] = (
            get_cuda_rng_tracker().fork() if dropout > 0.0 else nullcontext()
        )
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, a/t, s, d]
        if self.cache is not None:
            key, value = self.cache.extend(key, value)
        with stream:
            context = prefix_attention(
                query,
                key,
                value,
                prefix_lengths=attention_mask.tolist(),
                dropout=dropout,
            )
        return context.permute(2, 0, 1, 3).flatten(2)  # [b, a/t, s, d] -> [s, b, h/t]
