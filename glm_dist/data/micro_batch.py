"""Rows stacked into the tensors of one forward pass. Letters: ``b`` rows, ``s`` row length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from glm_dist.data.rows import Row, Segment


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows of one forward pass, as CPU tensors."""

    tokens: torch.Tensor
    """int64 [b, s]"""
    positions: torch.Tensor
    """int64 [b, s]"""
    block_positions: torch.Tensor
    """int64 [b, s]"""
    targets: torch.Tensor
    """int64 [b, s]"""
    loss_mask: torch.Tensor
    """bool [b, s]"""
    prefix_length: torch.Tensor
    """int64 [b]"""
    num_real_tokens: torch.Tensor
    """int64 [b]"""
    objectives: tuple[str, ...]
    """Objective of each row. [b]"""
    segments: tuple[tuple[Segment, ...], ...] = ()
    """Segments of each row [b], empty for a row that is one; no entries if no row is packed."""
    labels: torch.Tensor | None = None
    """Right answer or class of each row's example, int64 [b], -1 for none; None: no row has one."""

    @staticmethod
    def stack(rows: Sequence[Row]) -> "MicroBatch":
        """Stack rows of equal length.

        Args:
            rows: At least one row. [b]
        """
        return MicroBatch(
            tokens=torch.from_numpy(np.stack([row.tokens for row in rows])),
            positions=torch.from_numpy(np.stack([row.positions for row in rows])),
            block_positions=torch.from_numpy(np.stack([row.block_positions for row in rows])),
            targets=torch.from_numpy(np.stack([row.targets for row in rows])),
            loss_mask=torch.from_numpy(np.stack([row.loss_mask for row in rows])),
            prefix_length=torch.tensor([row.prefix_length for row in rows]),
            num_real_tokens=torch.tensor([row.num_real_tokens for row in rows]),
            objectives=tuple(row.objective for row in rows),
            segments=tuple(row.segments for row in rows) if any(r.segments for r in rows) else (),
            labels=(
                torch.tensor([row.label for row in rows])
                if any(row.label >= 0 for row in rows)
                else None
            ),
        )

    def pin_memory(self) -> "MicroBatch":
        """Copy the tensors to page-locked memory; torch's loader calls this."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        tensors: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **tensors)
