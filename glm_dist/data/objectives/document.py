"""One long blank: the tail of a text, or a middle (GLM's document-level objective)."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from glm_dist.data.objectives.base import Window
from glm_dist.data.objectives.blank_infilling import lay_out_blanks
from glm_dist.data.randomness import draw_below
from glm_dist.data.rows import Row
from glm_dist.data.spans import NO_BLANKS, Blanks
from glm_dist.data.special_tokens import SpecialTokens


@dataclass(frozen=True, eq=False)
class DocumentObjective:
    """Draws the length and form of the blank, and lays it out."""

    special: SpecialTokens
    row_length: int
    min_ratio: float
    """Shortest share of the window that is hidden."""
    suffix_share: float
    """Share of single-document windows whose tail is hidden rather than a middle."""
    name: str = "document"

    @property
    def window_length(self) -> int:
        """The one blank costs two extra tokens: [sop] and, for a middle, [eop]."""
        return self.row_length - 2

    def build(self, window: Window, rng: Generator) -> Row:
        """Hide one long stretch of the window; see ``Objective``."""
        blanks, is_suffix = self.choose(window, rng)
        return lay_out_blanks(
            window.tokens,
            blanks,
            closes_with_eop=not is_suffix,
            mask=self.special.gmask,
            special=self.special,
            objective=self.name,
            row_length=self.row_length,
        )

    def choose(self, window: Window, rng: Generator) -> tuple[Blanks, bool]:
        """Choose what to hide.

        The length is uniform from ``min_ratio`` of the window to the window less two tokens. With
        several documents in the window the tail is hidden always, because a middle must not
        contain a document's end.

        Returns:
            The blank, and whether it is the tail.
        """
        tokens = window.tokens
        size = len(tokens)
        longest = size - 2
        if longest < 1:
            return NO_BLANKS, False
        shortest = min(max(1, int(self.min_ratio * size)), longest)
        length = shortest + draw_below(rng, longest - shortest + 1)
        several = bool((tokens[:-1] == self.special.eos).any())
        is_suffix = bool(rng.random() < self.suffix_share)  # drawn always: one draw, one meaning
        if several or is_suffix:
            return Blanks(np.array([size - length]), np.array([length])), True
        # [CLS] in front and the last token stay visible, as in the official code.
        start = 1 + draw_below(rng, longest - length + 1)
        return Blanks(np.array([start]), np.array([length])), False
