"""Attention plan of one micro-batch: computed once on the host, used by every layer.

A row is one segment, or several that must not see each other. A segment is Part A, then Part B:
A sees all of A, B sees A and its own past (GLM 2.1). Our own kernels read the segments from a
table; torch's compute each in two calls:

1. Part A attends to Part A without a mask.
2. Part B attends to both parts causally, the last query aligned with the last key.

megatron-core passes the plan to core attention as ``packed_seq_params``: that argument reaches
every layer unchanged, also during recomputation, and does not have to be a tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch

from glm_dist.data.rows import Segment
from glm_dist.model.attention.dropout import DropoutWords
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
class AttentionPlan:
    """The segments of a micro-batch in the forms that kernels need."""

    qkv_format: ClassVar[str] = "sbhd"
    """Read by megatron-core: the tensors have their usual shape, not its packed one."""

    segments: tuple[AttentionSegment, ...]
    """For torch's calls."""
    table: torch.Tensor
    """For our kernels: row, first position, length and prefix of each segment, int32 [n, 4]."""
    rotation: Rotation | None = None
    """Angles of rotary positions; None if positions are learned."""
    words: DropoutWords | None = None
    """Words of dropout; None if our kernels drop nothing."""

    def to(self, device: torch.device) -> "AttentionPlan":
        """Move the table to a device; the copy waits for nothing."""
        table = self.table
        if device.type == "cuda" and not table.is_pinned():
            table = table.pin_memory()
        return replace(self, table=table.to(device, non_blocking=True))


def plan_attention(
    prefix_lengths: Sequence[int],
    *,
    row_length: int,
    segments: Sequence[Sequence[Segment]] = (),
) -> AttentionPlan:
    """Plan the attention of a micro-batch, on the host.

    Args:
        prefix_lengths: Tokens of Part A of each row [b], for rows that are one segment.
        row_length: s; a row that is one segment counts its padding as Part B.
        segments: Segments of packed rows [b], empty for the others; () if no row is packed. The
            rest of a packed row is padding and becomes a separate segment.
    """
    rows = [[Segment(row_length, prefix)] for prefix in prefix_lengths]
    for i, packed in enumerate(segments):
        if packed:
            rest = row_length - sum(segment.length for segment in packed)
            rows[i] = [*packed, *([Segment(rest, 0)] if rest else [])]
    return AttentionPlan(segments=_merge_rows(rows), table=_table(rows))


def _table(rows: Sequence[Sequence[Segment]]) -> torch.Tensor:
    """List the segments of all rows, int32 [n, 4]."""
    lines = []
    for number, row in enumerate(rows):
        start = 0
        for length, prefix in row:
            lines.append((number, start, length, prefix))
            start += length
    return torch.tensor(lines, dtype=torch.int32)


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
