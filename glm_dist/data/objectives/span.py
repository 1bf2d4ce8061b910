"""Short blanks: 15 % of the tokens in spans of about three (GLM's token-level objective)."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from glm_dist.data.objectives.base import Window
from glm_dist.data.objectives.blank_infilling import lay_out_blanks
from glm_dist.data.rows import Row
from glm_dist.data.spans import (
    choose_spans,
    find_stretches,
    largest_span_count,
    span_length_probabilities,
)
from glm_dist.data.special_tokens import SpecialTokens


@dataclass(frozen=True, eq=False)
class SpanObjective:
    """Chooses spans and lays them out as blanks."""

    special: SpecialTokens
    row_length: int
    window_length: int
    max_spans: int
    mask_ratio: float
    length_cdf: NDArray[np.float64]
    name: str = "span"

    @staticmethod
    def create(
        special: SpecialTokens, *, row_length: int, mask_ratio: float, mean_length: float
    ) -> "SpanObjective":
        """Find the longest window whose blanks fit a row: each blank costs two extra tokens.

        Args:
            special: Ids of the special tokens.
            row_length: Tokens of Part A and Part B together.
            mask_ratio: Share of the window's tokens to hide.
            mean_length: Poisson mean of span lengths.
        """
        probabilities = span_length_probabilities(mean_length)

        def max_spans(window_length: int) -> int:
            return largest_span_count(probabilities, max(1, int(mask_ratio * window_length)))

        shortest, longest = 1, row_length  # the answer lies in shortest … longest
        while shortest < longest:
            middle = (shortest + longest + 1) // 2
            if middle + 2 * max_spans(middle) <= row_length:
                shortest = middle
            else:
                longest = middle - 1
        return SpanObjective(
            special=special,
            row_length=row_length,
            window_length=shortest,
            max_spans=(row_length - shortest) // 2,
            mask_ratio=mask_ratio,
            length_cdf=probabilities.cumsum(),
        )

    def build(self, window: Window, rng: Generator) -> Row:
        """Hide spans of the window; see ``Objective``."""
        tokens = window.tokens
        is_border = (tokens == self.special.cls) | (tokens == self.special.eos)
        blanks = choose_spans(
            find_stretches(is_border),
            rng,
            length_cdf=self.length_cdf,
            num_tokens=max(1, int(self.mask_ratio * len(tokens))),
            max_spans=self.max_spans,
        )
        return lay_out_blanks(
            tokens,
            blanks,
            closes_with_eop=True,
            mask=self.special.mask,
            special=self.special,
            objective=self.name,
            row_length=self.row_length,
        )
