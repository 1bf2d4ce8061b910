"""GLM's objective: choose what to hide, lay it out as blanks, vary it as configured.

Three ways to hide (``span.py``, ``sentence.py``, ``document.py``), one layout (``layout.py``), and
the official options beside it, which change finished rows (``Variations``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from glm_dist.data.objectives.base import Blanks, Hiding, Plan, Window
from glm_dist.data.objectives.layout import lay_out_blanks
from glm_dist.data.objectives.span import document_starts
from glm_dist.data.rows import Row, Segment
from glm_dist.data.sampling.randomness import draw_below
from glm_dist.data.tokenizer.special_tokens import SpecialTokens

MOST_SHORT_TEXTS = 6
"""Texts that the window of a short row is cut into at most."""

SHORTEST_TEXT = 32
"""Least target length of a short text; official."""


@dataclass(frozen=True)
class Variations:
    """Options that are on; see ``CorruptionConfig``."""

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
        """Return True if a finished row is changed."""
        return (
            self.block_mask_prob > 0
            or self.random_positions
            or self.sentinels
            or self.no_block_positions
            or self.restart_positions
        )


@dataclass(frozen=True, eq=False)
class BlankInfilling:
    """One of GLM's objectives as rows."""

    hiding: Hiding
    special: SpecialTokens
    row_length: int
    variations: Variations
    is_short: bool = False
    """True if windows are split into shorter texts, each its own sample."""

    @property
    def name(self) -> str:
        """Name in metrics."""
        return self.hiding.name

    @property
    def window_length(self) -> int:
        """Each blank costs two tokens beside the text, each cut an opening [CLS]."""
        cuts = MOST_SHORT_TEXTS - 1 if self.is_short else 0
        return self.row_length - 2 * self.hiding.max_blanks - cuts

    def build(self, window: Window, rng: Generator) -> Row:
        """Make a row; see ``Objective``."""
        if self.is_short:
            window = cut_short(window, rng, self.special, most=MOST_SHORT_TEXTS)
        plan = self.hiding.choose(window, rng)
        if self.variations.keep_span_order:
            plan = _in_text_order(plan)
        if self.variations.isolate_documents or self.is_short:
            row = self._isolated(window.tokens, plan)
        else:
            row = self._lay_out(window.tokens, plan, row_length=self.row_length)
        if self.variations.changes_rows:
            row = vary_positions(row, self.variations, self.special, rng)
            if self.hiding.varies_inputs:
                row = vary_inputs(row, self.variations, self.special, rng)
        return _inside_table(row, self.variations.max_position)

    def _lay_out(
        self, tokens: NDArray[np.int64], plan: Plan, *, row_length: int | None, first: int = 0
    ) -> Row:
        """Lay out one text; ``first`` blanks of the row stand before it."""
        mask: int | NDArray[np.int64] = self.hiding.mask
        sop: int | NDArray[np.int64] = self.special.sop
        if self.variations.sentinels:
            numbers = first + np.arange(len(plan.blanks.starts))
            mask = np.where(numbers == 0, mask, self.special.sentinel_mask(numbers - 1))
            sop = np.where(numbers == 0, sop, self.special.sentinel_sop(numbers - 1))
        return lay_out_blanks(
            tokens,
            plan.blanks,
            closes_with_eop=plan.closes_with_eop,
            mask=mask,
            special=self.special,
            objective=self.name,
            row_length=row_length,
            sop=sop,
        )

    def _isolated(self, tokens: NDArray[np.int64], plan: Plan) -> Row:
        """Lay out each document by itself, one after the other."""
        starts = document_starts(tokens, self.special)
        homes = starts[1:].searchsorted(plan.blanks.starts, side="right")
        rows = []
        first = 0
        for number, (begin, end) in enumerate(pairwise(starts.tolist())):
            mine = homes == number
            blanks = Blanks(plan.blanks.starts[mine] - begin, plan.blanks.lengths[mine])
            part = Plan(blanks, plan.closes_with_eop[mine])
            rows.append(self._lay_out(tokens[begin:end], part, row_length=None, first=first))
            first += len(blanks.starts)
        row = join_segments(rows, self.row_length, pad=self.special.pad)
        return row if self.variations.restart_positions else _counting_on(row)


def _in_text_order(plan: Plan) -> Plan:
    order = plan.blanks.starts.argsort()
    blanks = Blanks(plan.blanks.starts[order], plan.blanks.lengths[order])
    return Plan(blanks, plan.closes_with_eop[order])


def _counting_on(row: Row) -> Row:
    """Let positions run on from document to document."""
    positions = row.positions.copy()
    begin = before = 0
    for segment in row.segments:
        positions[begin : begin + segment.length] += before
        begin += segment.length
        before += segment.prefix_length
    return replace(row, positions=positions)


def _inside_table(row: Row, max_position: int) -> Row:
    """Keep positions inside the table.

    Only windows in which almost nothing could be hidden (crumbs of documents) reach beyond, by a
    few tokens; their last ones share the last position.
    """
    if row.prefix_length <= max_position + 1 and not row.segments:
        return row
    return replace(row, positions=np.minimum(row.positions, max_position))


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
