"""GLM's layout: text with blanks (Part A), then the blanks' content (Part B).

Every blank is one mask token in Part A. Part B gives, blank after blank, the input [sop] x1 … xk
and the targets x1 … xk [eop]. A Part B token has the position of its mask and counts 1, 2, … as
second position. GLM, arXiv 2103.10360, section 2.1 and figure 2. Options are in ``glm.py``.
"""

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.objectives.base import Blanks
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.special_tokens import SpecialTokens

Integers = NDArray[np.int64]


def lay_out_blanks(
    source: Integers,
    blanks: Blanks,
    *,
    closes_with_eop: bool | NDArray[np.bool_],
    mask: int | Integers,
    special: SpecialTokens,
    objective: str,
    row_length: int | None = None,
    sop: int | Integers | None = None,
) -> Row:
    """Turn a window and its blanks into a row.

    Args:
        source: Token ids of the window. [w]
        blanks: Spans to hide, in the order of emission; they do not overlap.
        closes_with_eop: Whether blanks, or each of them, end with the target [eop]. Without it (the
            tail of a text) the last target is the last hidden token, and the opening tokens of
            hidden documents are not trained.
        mask: Id that stands for blanks, or for each of them, in Part A.
        special: Ids of the special tokens.
        objective: Name noted in the row.
        row_length: Length to pad to; unset: no padding. Part A and Part B must fit.
        sop: Id that opens blanks, or each of them, in Part B; unset: [sop].
    """
    closes = np.ones(len(blanks.starts), np.bool_) & closes_with_eop
    pieces = blanks.lengths + closes  # Part B tokens of each blank
    firsts = pieces.cumsum() - pieces  # index in Part B of each [sop]
    within = np.arange(int(pieces.sum())) - firsts.repeat(pieces)  # 0 at [sop]
    # One token more than the window, so that the targets can be read in one go: the end of piece.
    extended = np.empty(len(source) + 1, np.int64)
    extended[:-1], extended[-1] = source, special.eop
    answers = extended[blanks.starts.repeat(pieces) + within]
    answers[(firsts + blanks.lengths)[closes]] = special.eop
    in_part_a, mask_positions = _part_a(source, blanks, mask)

    prefix_length, num_real = len(in_part_a), len(in_part_a) + len(within)
    length = num_real if row_length is None else row_length
    tokens, targets = np.full(length, special.pad), np.full(length, special.pad)
    positions, block_positions = np.zeros(length, np.int64), np.zeros(length, np.int64)
    loss_mask = np.zeros(length, np.bool_)
    part_a, part_b = slice(0, prefix_length), slice(prefix_length, num_real)
    tokens[part_a] = targets[part_a] = in_part_a
    tokens[prefix_length + 1 : num_real] = answers[:-1]
    tokens[prefix_length + firsts] = special.sop if sop is None else sop
    targets[part_b] = answers
    positions[part_a] = np.arange(prefix_length)
    positions[part_b] = mask_positions.repeat(pieces)
    block_positions[part_b] = within + 1
    loss_mask[part_b] = closes.repeat(pieces) | (answers != special.cls)
    return Row(
        tokens=tokens,
        positions=positions,
        block_positions=block_positions,
        targets=targets,
        loss_mask=loss_mask,
        prefix_length=prefix_length,
        objective=objective,
        num_real_tokens=num_real,
    )


def _part_a(source: Integers, blanks: Blanks, mask: int | Integers) -> tuple[Integers, Integers]:
    """Put a mask in the place of each blank; also give the masks' places. [prefix_length], [n]."""
    hides = np.zeros(len(source) + 1, np.int8)
    hides[blanks.starts] += 1
    hides[blanks.starts + blanks.lengths] -= 1
    visible = hides[:-1].cumsum(dtype=np.int8) == 0
    visible[blanks.starts] = True  # the first hidden token gives its place to the mask
    shown = np.flatnonzero(visible)
    mask_positions = shown.searchsorted(blanks.starts)
    tokens = source[shown]
    tokens[mask_positions] = mask
    return tokens, mask_positions
