"""Short blanks: 15 % of the tokens in spans of about three (GLM's token-level objective)."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from glm_dist.data.objectives.base import Plan, Window
from glm_dist.data.objectives.spans import (
    Stretches,
    choose_spans,
    find_stretches,
    largest_span_count,
    span_length_probabilities,
)
from glm_dist.data.tokenizer.special_tokens import SpecialTokens


@dataclass(frozen=True, eq=False)
class SpanHiding:
    """Chooses short spans."""

    special: SpecialTokens
    max_blanks: int
    mask_ratio: float
    """Share of the window's tokens to hide; 0 hides one span."""
    length_cdf: NDArray[np.float64]
    name: str = "span"

    @staticmethod
    def create(
        special: SpecialTokens, *, row_length: int, mask_ratio: float, mean_length: float
    ) -> "SpanHiding":
        """Find the longest window whose blanks fit a row.

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
        return SpanHiding(
            special=special,
            max_blanks=(row_length - shortest) // 2,
            mask_ratio=mask_ratio,
            length_cdf=probabilities.cumsum(),
        )

    def single(self) -> "SpanHiding":
        """Hide one span only [single-span-prob]."""
        return replace(self, max_blanks=1, mask_ratio=0.0, name="single_span")

    @property
    def mask(self) -> int:
        """Token that stands for a blank."""
        return self.special.mask

    def choose(self, window: Window, rng: Generator) -> Plan:
        """Choose spans; see ``Hiding``."""
        tokens = window.tokens
        blanks = choose_spans(
            text_of(tokens, self.special),
            rng,
            length_cdf=self.length_cdf,
            num_tokens=max(1, int(self.mask_ratio * len(tokens))),
            max_spans=self.max_blanks,
        )
        return Plan.of_middles(blanks)


def text_of(tokens: NDArray[np.int64], special: SpecialTokens) -> Stretches:
    """Find the runs of tokens between those that open and close documents.

    Args:
        tokens: Window. [w]
        special: Ids of the special tokens.
    """
    return find_stretches((tokens == special.cls) | (tokens == special.eos))


def document_starts(tokens: NDArray[np.int64], special: SpecialTokens) -> NDArray[np.int64]:
    """Find where the documents of a window begin; the last entry is where the window ends.

    Args:
        tokens: Window. [w]
        special: Ids of the special tokens.
    """
    begins = tokens == special.cls
    begins[1:] |= tokens[:-1] == special.eos
    begins[0] = True
    return np.append(begins.nonzero()[0], len(tokens))
