"""GLM's objective: choose what to hide, lay it out as blanks, vary it as configured.

Three ways to hide (``span.py``, ``sentence.py``, ``document.py``), one layout
(``blank_infilling.py``), and the official options (``variations.py``).
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from glm_dist.data.objectives.base import Hiding, Plan, Window
from glm_dist.data.objectives.layout import lay_out_blanks
from glm_dist.data.objectives.options import (
    Variations,
    cut_short,
    join_segments,
    vary_inputs,
    vary_positions,
)
from glm_dist.data.objectives.span import document_starts
from glm_dist.data.objectives.spans import Blanks
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.special_tokens import SpecialTokens

MOST_SHORT_TEXTS = 6
"""Texts that the window of a short row is cut into at most."""


@dataclass(frozen=True, eq=False)
class BlankInfilling:
    """One of GLM's objectives as rows."""

    hiding: Hiding
    special: SpecialTokens
    row_length: int
    variations: Variations
    is_short: bool = False
    """Whether windows are cut into shorter texts, each a sample of its own."""

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
            if self.name == "span":
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
