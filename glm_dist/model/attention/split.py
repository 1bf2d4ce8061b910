"""Prefix attention on a CPU without a mask: two fused calls whose results are merged.

1. Every query of a segment attends to Part A, without a mask.
2. Queries of Part B attend to Part B, causally.

Part A is done after the first call. For Part B the two results are averages over different keys;
their log-sum-exps are the weights. Backward calls the fused kernels again with the merged output
and log-sum-exp, so that their gradients add up (as in ring attention). Exactly the attended pairs
are computed: p s + b (b + 1) / 2 of s * s, for b = s - p.
"""

from typing import Any

import torch

from glm_dist.model.attention.plan import AttentionSegment

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _SplitAttention(torch.autograd.Function):
    """A single autograd node for the whole micro-batch, so that gradients are written once."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: tuple[AttentionSegment, ...],
    ) -> torch.Tensor:
        out = torch.empty_like(query)
        cached = key.size(2) - query.size(2)
        log_sums = []
        for part in segments:
            part_a, part_b, queries = _indices(part, cached)
            log_sum = None
            if _length(part_a) > 0:
                whole, log_sum = _forward(query[queries], key[part_a], value[part_a])
                out[queries] = whole
            if part.middle < part.stop:
                late = (part.rows, slice(None), slice(part.middle, part.stop))
                causal, late_sum = _forward(query[late], key[part_b], value[part_b], 0.0, True)
                if log_sum is None:
                    out[late], log_sum = causal, late_sum
                else:
                    merged = log_sum[:, :, part.middle - part.start :]  # [b, a, b_len]
                    share = torch.sigmoid(late_sum - merged).unsqueeze(3)
                    out[late].lerp_(causal, share.to(causal.dtype))
                    merged.copy_(torch.logaddexp(merged, late_sum))
            log_sums.append(log_sum)
        ctx.save_for_backward(query, key, value, out, *log_sums)
        ctx.segments = segments
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *log_sums = ctx.saved_tensors
        query_grad = torch.empty_like(query)
        key_grad, value_grad = torch.empty_like(key), torch.empty_like(value)
        cached = key.size(2) - query.size(2)
        for part, log_sum in zip(ctx.segments, log_sums, strict=True):
            part_a, part_b, queries = _indices(part, cached)
            has_a = _length(part_a) > 0
            if has_a:
                query_grad[queries], key_grad[part_a], value_grad[part_a] = _backward(
                    grad[queries],
                    query[queries],
                    key[part_a],
                    value[part_a],
                    out[queries],
                    log_sum,
                    0.0,
                    False,
                )
            if part.middle < part.stop:
                late = (part.rows, slice(None), slice(part.middle, part.stop))
                late_grad, key_grad[part_b], value_grad[part_b] = _backward(
                    grad[late],
                    query[late],
                    key[part_b],
                    value[part_b],
                    out[late],
                    log_sum[:, :, part.middle - part.start :] if has_a else log_sum,
                    0.0,
                    True,
                )
                if has_a:
                    query_grad[late] += late_grad
                else:
                    query_grad[late] = late_grad
        return query_grad, key_grad, value_grad, None


Indices = tuple[slice, slice, slice]


def _indices(part: AttentionSegment, cached: int) -> tuple[Indices, Indices, Indices]:
    """Return the keys of Part A, the keys of Part B and all queries as indices of [b, a, s, d].

    Cached keys precede the row's own keys and count as Part A.
    """
    return (
        (part.rows, slice(None), slice(part.start, cached + part.middle)),
        (part.rows, slice(None), slice(cached + part.middle, cached + part.stop)),
        (part.rows, slice(None), slice(part.start, part.stop)),
    )


def _length(indices: Indices) -> int:
    return int(indices[2].stop - indices[2].start)


def split_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: tuple[AttentionSegment, ...],
) -> torch.Tensor:
    """Compute attention without dropout on a CPU.

    Args:
        query: [b, a, s, d].
        key: [b, a, m + s, d]; the first m are cached tokens, which every query sees.
        value: [b, a, m + s, d].
        segments: Segments; they cover every row.

    Returns:
        [b, a, s, d], in the memory order of the query.
    """
    out: torch.Tensor = _SplitAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, segments
    )
    return out
