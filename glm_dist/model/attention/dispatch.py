"""Core attention under GLM's prefix mask: Part A sees itself, Part B sees A and its own past.

Query i of a segment with prefix length p may see key j iff j <= i or j < p (GLM 2.1). The mask
is never built: ``plan.py`` gives the ranges of the two calls, and this file chooses the kernel.

- CPU: merged fused calls (``split.py``). They compute p s + b (b + 1) / 2 of the s * s pairs of a
  call with a dense mask; measured in docs/performance.md.
- GPU in 16 bits: variable-length flash calls (``varlen.py``).
- Else (dropout on a CPU, fp32 or an old GPU, the cache of generation there): torch's
  own choice for each segment; only Part B has a mask, [b, s] for b of the s positions.

Padding lies after Part B and is therefore invisible to real tokens.
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Protocol

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import scaled_dot_product_attention

from glm_dist.model.attention.plan import AttentionPlan, AttentionSegment
from glm_dist.model.attention.rotary import rotate
from glm_dist.model.attention.split import split_attention
from glm_dist.model.attention.varlen import can_use_flash, varlen_attention
from glm_dist.parallel.rng import get_cuda_rng_tracker


class AttentionCache(Protocol):
    """Keys and values of tokens that earlier forward passes saw."""

    @property
    def visible(self) -> torch.Tensor | None:
        """True for keys that later tokens may see [b, s_seen]; None if they see all."""

    def extend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens [b, a, s_new, d] and return all [b, a, s_seen + s_new, d]."""


def uses_mask(device: torch.device, dtype: torch.dtype, *, dropout: float, head_size: int) -> bool:
    """Return True if no fused kernel applies and Part B falls back to a dense mask."""
    if device.type == "cpu":
        return dropout > 0.0
    return not can_use_flash(device, dtype, head_size=head_size)


def prefix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    plan: AttentionPlan,
    dropout: float,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute attention of every row under its own prefix mask.

    Args:
        query: [b, a, s, d].
        key: [b, a, m + s, d]; the first m are cached tokens, which every query sees.
        value: [b, a, m + s, d].
        plan: Segments of the rows.
        dropout: Probability of dropping an attention weight.
        visible: True for keys that the queries may see [b, m + s], if some cached ones are
            padding; the new tokens are Part B.

    Returns:
        [b, a, s, d].
    """
    cached = key.size(2) - query.size(2)
    if cached and visible is not None:
        return _attend_visible(query, key, value, visible)
    is_masked = uses_mask(query.device, query.dtype, dropout=dropout, head_size=query.size(3))
    if query.device.type == "cpu" and not is_masked:
        return split_attention(query, key, value, plan.segments)
    if plan.variable_length is not None and not (cached or is_masked):
        query, key, value = (x.permute(2, 0, 1, 3) for x in (query, key, value))  # [s, b, a, d]
        out = varlen_attention(query, key, value, plan.variable_length, dropout=dropout)
        return out.permute(1, 2, 0, 3)
    rows = [
        torch.cat(
            [_attend(query, key, value, part, cached=cached, dropout=dropout) for part in parts],
            dim=2,
        )
        for _, parts in groupby(plan.segments, key=lambda part: part.rows.start)
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    part: AttentionSegment,
    *,
    cached: int,
    dropout: float,
) -> torch.Tensor:
    """Run the two calls for one segment [rows, a, positions, d]."""
    early, late = slice(part.start, part.middle), slice(part.middle, part.stop)
    query, key, value = (x[part.rows] for x in (query, key, value))
    seen, all_seen = slice(part.start, cached + part.middle), slice(part.start, cached + part.stop)
    parts = []
    if part.start < part.middle:
        parts.append(
            scaled_dot_product_attention(
                query[:, :, early], key[:, :, seen], value[:, :, seen], dropout_p=dropout
            )
        )
    if part.middle < part.stop:
        shape = (part.stop - part.middle, cached + part.stop - part.start)
        visible = torch.ones(shape, dtype=torch.bool, device=query.device)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, late],
                key[:, :, all_seen],
                value[:, :, all_seen],
                attn_mask=visible.tril(shape[1] - shape[0]),
                dropout_p=dropout,
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _attend_visible(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor
) -> torch.Tensor:
    """Let new tokens see the visible keys up to themselves [b, a, s, d]."""
    new, total = query.size(2), key.size(2)
    causal = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
    mask = causal & visible[:, None, None, :]  # [b, 1, s, m + s]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


class PrefixAttention(torch.nn.Module):
    """Core attention for megatron-core's ``SelfAttention``."""

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
        self.sequence_parallel = config.sequence_parallel
        self.cache: AttentionCache | None = None  # set while generating

    # Compiled code would be recompiled for the prefixes of every micro-batch.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: AttentionPlan | None = None,
    ) -> torch.Tensor:
        """Compute attention.

        Args:
            query: [s, b, a/t, d].
            key: [s, b, a/t, d].
            value: [s, b, a/t, d].
            attention_mask: Unused; there is no mask tensor.
            attn_mask_type: Unused; the mask is always GLM's.
            attention_bias: Unused.
            packed_seq_params: Segments of the rows, and the angles of rotary positions.

        Returns:
            [s, b, h/t].
        """
        assert packed_seq_params is not None, "hidden_states passes the plan to every layer"
        dropout = self.dropout if self.training else 0.0
        # Heads differ between tensor-parallel ranks, so their masks come from the sharded stream.
        # Under sequence parallelism the whole block draws from it already; a second fork would
        # make recomputation draw other masks.
        forks = dropout > 0.0 and not self.sequence_parallel
        stream: AbstractContextManager[None] = (
            get_cuda_rng_tracker().fork() if forks else nullcontext()
        )
        rotation = packed_seq_params.rotation
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, a/t, s, d]
        visible = None
        if self.cache is not None:
            key, value = self.cache.extend(key, value)
            visible = self.cache.visible
        with stream:
            context = prefix_attention(
                query, key, value, plan=packed_seq_params, dropout=dropout, visible=visible
            )
        return context.permute(2, 0, 1, 3).flatten(2)  # [b, a/t, s, d] -> [s, b, h/t]
