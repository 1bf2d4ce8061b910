"""Attention plan of one micro-batch: computed once on the host, used by every layer.

A row is one segment, or several that must not see each other. A segment is Part A, then Part B:
A sees all of A, B sees A and its own past (GLM 2.1). Fast kernels compute this in two calls:

1. Part A attends to Part A without a mask.
2. Part B attends to both parts causally, the last query aligned with the last key.

megatron-core passes the plan to core attention as ``packed_seq_params``: that argument reaches
every layer unchanged, also during recomputation, and does not have to be a tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from glm_dist.data.rows import Segment
from glm_dist.model.attention.rotary import Rotation


@dataclass(frozen=True)
class AttentionSegment:
    """One segment at the same positions of consecutive rows, which share a call."""

    rows: slice
    start: int
    """First position of Part A."""
    middle: int
    """First position of Part B."""
    stop: int
    """First position after Part B."""


@dataclass(frozen=True)
class VariableLength:
    """The two calls over all segments at once, in the form of variable-length kernels.

    Tokens lie in the order of [s, b] memory: position i of row r is i * b + r. Queries are

    permuted to "every Part A, then every Part B", so that each call reads one contiguous range;
    keys are permuted to row-major order, which serves both calls. In the first call the keys of
    Part B belong to sequences without queries.
    """

    query_order: torch.Tensor
    """Memory index of each query [s * b]."""
    query_inverse: torch.Tensor
    """The inverse permutation [s * b]."""
    key_order: torch.Tensor
    """Memory index of each key [s * b]."""
    key_inverse: torch.Tensor
    """The inverse permutation [s * b]."""
    num_part_a: int
    """Queries of the first call."""
    part_a_queries: torch.Tensor
    """Offsets of the first call's sequences in its queries, int32 [2 n + 1]."""
    part_a_keys: torch.Tensor
    """The same among the keys, int32 [2 n + 1]."""
    part_b_queries: torch.Tensor
    """Offsets of the n segments in the queries of the second call, int32 [n + 1]."""
    part_b_keys: torch.Tensor
    """The same among the keys, int32 [n + 1]."""
    longest_part_a: int
    longest_part_b: int
    longest_segment: int


@dataclass(frozen=True)
class AttentionPlan:
    """The segments of a micro-batch in the forms that kernels need."""

    qkv_format: ClassVar[str] = "sbhd"
    """Read by megatron-core: the tensors have their usual shape, not its packed one."""

    segments: tuple[AttentionSegment, ...]
    variable_length: VariableLength | None
    """None if the device has no such kernels."""
    rotation: Rotation | None = None
    """Angles of rotary positions; None if positions are learned."""


def plan_attention(
    prefix_lengths: Sequence[int],
    *,
    row_length: int,
    device: torch.device,
    segments: Sequence[Sequence[Segment]] = (),
) -> AttentionPlan:
    """Plan the attention of a micro-batch.

    Args:
        prefix_lengths: Tokens of Part A of each row [b], for rows that are one segment.
        row_length: s; a row that is one segment counts its padding as Part B.
        device: Device of the kernels.
        segments: Segments of packed rows [b], empty for the others; () if no row is packed. The
            rest of a packed row is padding and becomes a separate segment.
    """
    rows = [[Segment(row_length, prefix)] for prefix in prefix_lengths]
    for i, packed in enumerate(segments):
        if packed:
            rest = row_length - sum(segment.length for segment in packed)
            rows[i] = [*packed, *([Segment(rest, 0)] if rest else [])]
    variable_length = None
    if device.type == "cuda":
        variable_length = plan_variable_length(rows, device=device)
    return AttentionPlan(segments=_merge_rows(rows), variable_length=variable_length)


def _merge_rows(rows: Sequence[Sequence[Segment]]) -> tuple[AttentionSegment, ...]:
    """Give consecutive rows with equal segments one call per segment."""
    borders = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]] + [len(rows)]
    segments = []
    for first, end in pairwise(borders):
        start = 0
        for length, prefix in rows[first]:
            segments.append(
                AttentionSegment(slice(first, end), start, start + prefix, start + length)
            )
            start += length
    return tuple(segments)


def plan_variable_length(
    rows: Sequence[Sequence[Segment]], *, device: torch.device
) -> VariableLength:
    """Compute the permutations and offsets of the two variable-length calls.

    Args:
        rows: Segments of each row [b]; their lengths add up to s.
        device: Target of the index tensors; the copies are asynchronous.
    """
    flat = [segment for row in rows for segment in row]
    lengths = torch.tensor([segment.length for segment in flat])
    part_a = torch.tensor([segment.prefix_length for segment in flat])
    part_b = lengths - part_a
    row_length = sum(segment.length for segment in rows[0])
    # Row-major: key j is position j % s of row j // s.
    key_order = torch.arange(row_length * len(rows)).view(row_length, len(rows)).t().reshape(-1)
    alternating = torch.stack([part_a, part_b], dim=1).reshape(-1)  # A, B, A, B, … [2 n]
    in_part_a = torch.tensor([True, False]).repeat(len(flat)).repeat_interleave(alternating)
    query_order = torch.cat([key_order[in_part_a], key_order[~in_part_a]])
    queries_of_a = torch.stack([part_a, torch.zeros_like(part_a)], dim=1).reshape(-1)

    def borders(counts: torch.Tensor) -> torch.Tensor:
        return _to_device(torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int(), device)

    return VariableLength(
        query_order=_to_device(query_order, device),
        query_inverse=_to_device(query_order.argsort(), device),
        key_order=_to_device(key_order, device),
        key_inverse=_to_device(key_order.argsort(), device),
        num_part_a=int(part_a.sum()),
        part_a_queries=borders(queries_of_a),
        part_a_keys=borders(alternating),
        part_b_queries=borders(part_b),
        part_b_keys=borders(lengths),
        longest_part_a=int(part_a.max()),
        longest_part_b=int(part_b.max()),
        longest_segment=int(lengths.max()),
    )


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy asynchronously, which only pinned memory allows."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
