"""One fixed-shape row, the model's input. No torch; ``micro_batch.py`` stacks rows to tensors.

Layout: Part A at 0 … prefix_length - 1, Part B after it, padding at the end. Query ``i`` may attend
key ``j`` if ``j <= i`` or ``j < prefix_length``; padding stands behind everything else, so nothing
real ever sees it. A packed row repeats this layout, one ``Segment`` after the other; tokens of
different segments never see each other.

Letter: ``s`` row length.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
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
    """True where the prediction counts. [s]"""
    prefix_length: int
    """Tokens of Part A; of the first segment if the row is packed."""
    objective: str
    """Name of the objective that made the row."""
    num_real_tokens: int
    """Tokens that are not padding."""
    index: int = -1
    """Row index in training or validation; -1 for a row that was built on its own."""
    corpus: str = ""
    """Name of the corpus the text comes from."""
    segments: tuple[Segment, ...] = ()
    """Of a packed row, from its start, without padding; empty: the row is one segment."""
    label: int = -1
    """Index of the right answer or class, equal in all rows of an example; -1: none."""
