"""Core attention under GLM's prefix mask: Part A sees itself, Part B sees A and its own past.

Query i of a segment with prefix length p may see key j iff j <= i or j < p (GLM 2.1). The mask
is never built: ``plan.py`` describes the segments, and this file chooses the kernel.

- GPU from Ampere on, with Triton: our kernels (``operator.py``), in 16 bits and fp32, with and
  without dropout.
- CPU: merged fused calls (``split.py``). They compute p s + b (b + 1) / 2 of the s * s pairs of a
  call with a dense mask; measured in docs/performance.md.
- Else (dropout on a CPU, an old GPU, a GPU without Triton, the cache of generation on GPUs):
  torch's own choice for each segment; only Part B has a mask, [b, s] for b of the s positions.

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

from glm_dist.model.attention.operator import fused_prefix_attention, has_kernels
from glm_dist.model.attention.plan import AttentionPlan, AttentionSegment
from glm_dist.model.attention.rotary import rotate
from glm_dist.model.attention.split import split_attention
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
    return not has_kernels(device, dtype, head_size=head_size)


def prefix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    plan: AttentionPlan,
    dropout: float,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute attention of every row under its own prefix mask, by torch's kernels.

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
    if query.device.type == "cpu" and dropout == 0.0:
        return split_attention(query, key, value, plan.segments)
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
    """Core attention of one layer."""

    origin: torch.Tensor

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
        """Take the constructor call of megatron-core's ``SelfAttention``, whose masks are not used.

        Args:
            config: megatron-core's configuration.
            layer_number: Unused; ``settle`` gets the number in the whole model.
            attn_mask_type: Unused.
            attention_type: Unused.
            cp_comm_type: Unused.
            softmax_scale: Unused.
            pg_collection: Its tensor-parallel group shares the heads.
        """
        super().__init__()
        self.dropout = config.attention_dropout
        self.sequence_parallel = config.sequence_parallel
        self.cache: AttentionCache | None = None  # set while generating
        self.uses_kernels = False
        assert pg_collection is not None, "megatron-core's block passes the groups on"
        local_heads = config.num_attention_heads // pg_collection.tp.size()
        self._first_head = pg_collection.tp.rank() * local_heads
        self._head_size = config.kv_channels
        self._dtype = config.params_dtype
        # A tensor, since compiled code is shared by the layers: a number would compile each again.
        origin = torch.tensor([0, self._first_head], dtype=torch.int32)
        self.register_buffer("origin", origin, persistent=False)

    def settle(self, layer: int, device: torch.device) -> None:
        """Choose the kernels and number the layer, on which dropout depends.

        Args:
            layer: Index in the whole model.
            device: Device of the tensors to come.
        """
        self.uses_kernels = has_kernels(device, self._dtype, head_size=self._head_size)
        self.origin = torch.tensor([layer, self._first_head], dtype=torch.int32, device=device)

    def forward(self, mixed: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Compute attention.

        Args:
            mixed: Query, key and value of each head [s, b, a/t, 3 d].
            plan: Segments of the rows, angles of rotary positions, words of dropout.

        Returns:
            [s, b, h/t].
        """
        dropout = self.dropout if self.training else 0.0
        if plan.rotation is not None:
            query, key, value = mixed.chunk(3, dim=3)
            query, key = rotate(query, plan.rotation), rotate(key, plan.rotation)
            mixed = torch.cat([query, key, value], dim=3)
        if self.uses_kernels and self.cache is None:
            out = fused_prefix_attention(
                mixed, plan.table, rate=dropout, words=plan.words, origin=self.origin
            )
            return out.flatten(2)  # [s, b, a/t, d] -> [s, b, h/t]
        by_torch: torch.Tensor = self._by_torch(mixed, plan, dropout)
        return by_torch

    # Compiled code would be recompiled for the prefixes of every micro-batch.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _by_torch(self, mixed: torch.Tensor, plan: AttentionPlan, dropout: float) -> torch.Tensor:
        """Compute attention without our kernels; see ``forward``."""
        # Heads differ between tensor-parallel ranks, so their masks come from the sharded stream.
        # Under sequence parallelism the whole block draws from it already; a second fork would
        # make recomputation draw other masks.
        forks = dropout > 0.0 and not self.sequence_parallel
        stream: AbstractContextManager[None] = (
            get_cuda_rng_tracker().fork() if forks else nullcontext()
        )
        query, key, value = (x.permute(1, 2, 0, 3) for x in mixed.chunk(3, dim=3))  # [b, a/t, s, d]
        visible = None
        if self.cache is not None:
            key, value = self.cache.extend(key, value)
            visible = self.cache.visible
        with stream:
            context = prefix_attention(
                query, key, value, plan=plan, dropout=dropout, visible=visible
            )
        return context.permute(2, 0, 1, 3).flatten(2)  # [b, a/t, s, d] -> [s, b, h/t]
