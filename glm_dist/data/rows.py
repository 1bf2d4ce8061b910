"""What the model reads: one fixed-shape row, and rows stacked into a micro-batch.

Layout: Part A at 0 … prefix_length - 1, Part B after it, padding at the end. Query ``i`` may attend
key ``j`` if ``j <= i`` or ``j < prefix_length``; padding stands behind everything else, so nothing
real ever sees it. A packed row repeats this layout, one ``Segment`` after the other; tokens of
different segments never see each other.

Letters: ``b`` rows, ``s`` row length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Segment(NamedTuple):
    """A contiguous stretch of a packed row: its own Part A, then its own Part B."""

    length: int
    """Tokens of both parts."""
    prefix_length: int
    """Tokens of Part A."""


@dataclass(frozen=True, eq=False)
class Row:
    """One training row; every array has length ``s``."""

    tokens: Integers
    """Input ids. [s]"""
    positions: Integers
    """First position id: the index in Part A; for Part B, the index of the blank's mask. [s]"""
    block_positions: Integers
    """Second position id: 0 in Part A, 1, 2, … inside a blank. [s]"""
    targets: Integers
    """Ids to predict; copies of the input where there is no loss. [s]"""
    loss_mask: NDArray[np.bool_]
    """Where the prediction counts. [s]"""
    prefix_length: int
    """Tokens of Part A; of the first segment if the row is packed."""
    objective: str
    """Which objective made the row."""
    num_real_tokens: int
    """Tokens that are not padding."""
    index: int = -1
    """Row index in training or validation; -1 for a row that was built on its own."""
    corpus: str = ""
    """Name of the corpus the text comes from."""
    segments: tuple[Segment, ...] = ()
    """Of a packed row, from its start, without padding; empty: the row is one segment."""


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
