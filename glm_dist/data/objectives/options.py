"""Official options beside the plain layout: what they change in a finished row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from glm_dist.data.objectives.base import Window
from glm_dist.data.rows import Row, Segment
from glm_dist.data.sampling.randomness import draw_below
from glm_dist.data.tokenizer.special_tokens import SpecialTokens

SHORTEST_TEXT = 32
"""Least target length of a short text; official."""


@dataclass(frozen=True)
class Variations:
    """Which options are on; see ``CorruptionConfig``."""

    max_position: int
    """Last row of the position tables."""
    block_mask_prob: float = 0.0
    keep_span_order: bool = False
    random_positions: bool = False
    sentinels: bool = False
    no_block_positions: bool = False
    isolate_documents: bool = False
    restart_positions: bool = False

    @property
    def changes_rows(self) -> bool:
        """Whether anything is to be done with a finished row."""
        return (
            self.block_mask_prob > 0
            or self.random_positions
            or self.sentinels
            or self.no_block_positions
            or self.restart_positions
        )


def vary_inputs(row: Row, variations: Variations, special: SpecialTokens, rng: Generator) -> Row:
    """Hide some inputs of Part B by [dBLOCK], so that a blank leans on Part A; targets stay.

    Args:
        row: Finished row.
        variations: Options.
        special: Ids of the special tokens.
        rng: Draws which inputs.
    """
    if variations.block_mask_prob == 0:
        return row
    hidden = rng.random(len(row.tokens)) < variations.block_mask_prob
    hidden &= row.block_positions > 1  # neither Part A nor [sop]
    return replace(row, tokens=np.where(hidden, special.block_mask, row.tokens))


def vary_positions(row: Row, variations: Variations, special: SpecialTokens, rng: Generator) -> Row:
    """Change the two position ids of a finished row.

    Args:
        row: Finished row.
        variations: Options.
        special: Ids of the special tokens.
        rng: Draws the offset.
    """
    positions, block_positions = row.positions, row.block_positions
    in_part_b = block_positions > 0
    if variations.restart_positions and not row.segments:
        index = np.arange(len(positions))
        opening = np.where((row.tokens == special.cls) & ~in_part_b, index, 0)
        within = index - np.maximum.accumulate(opening)
        positions = within[positions] * (index < row.num_real_tokens)
    if variations.random_positions:
        room = variations.max_position - 1 - int(positions.max())
        if room > 0:
            offset = draw_below(rng, room + 1)
            positions = positions + offset * (np.arange(len(positions)) < row.num_real_tokens)
    if variations.sentinels:
        positions = np.where(in_part_b, variations.max_position, positions)
    if variations.no_block_positions:
        block_positions = in_part_b.astype(np.int64)
    return replace(row, positions=positions, block_positions=block_positions)


def join_segments(rows: Sequence[Row], row_length: int, *, pad: int) -> Row:
    """Put rows that must not see each other into one.

    Args:
        rows: Unpadded rows, at least one.
        row_length: Length to pad to; the rows together must fit.
        pad: Id of padding.
    """
    sizes = [row.num_real_tokens for row in rows]
    room = (0, row_length - sum(sizes))
    return Row(
        tokens=np.pad(np.concatenate([row.tokens for row in rows]), room, constant_values=pad),
        positions=np.pad(np.concatenate([row.positions for row in rows]), room),
        block_positions=np.pad(np.concatenate([row.block_positions for row in rows]), room),
        targets=np.pad(np.concatenate([row.targets for row in rows]), room, constant_values=pad),
        loss_mask=np.pad(np.concatenate([row.loss_mask for row in rows]), room),
        prefix_length=rows[0].prefix_length,
        objective=rows[0].objective,
        num_real_tokens=sum(sizes),
        segments=tuple(Segment(row.num_real_tokens, row.prefix_length) for row in rows),
    )


def cut_short(window: Window, rng: Generator, special: SpecialTokens, *, most: int) -> Window:
    """Cut a window into shorter texts, each opened by [CLS].

    Args:
        window: Text.
        rng: Draws the target length.
        special: Ids of the special tokens.
        most: Texts at most.
    """
    tokens = window.tokens
    size = len(tokens)
    target = SHORTEST_TEXT + draw_below(rng, max(1, size - SHORTEST_TEXT))
    count = min(most, -(-size // target))
    cuts = [size * number // count for number in range(1, count)]
    # A [CLS] of the text opens the piece already; another would be a document of its own.
    cuts = [cut for cut in cuts if special.cls not in (tokens[cut], tokens[cut - 1])]
    return Window(np.insert(tokens, cuts, special.cls), window.starts_mid_document)
