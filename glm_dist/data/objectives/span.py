"""Short blanks: 15 % of the tokens in spans of about three (GLM's token-level objective).

Follows GLM (arXiv 2103.10360) section 2.1: lengths from a Poisson distribution until a share of the
tokens is covered, spans that never touch, and a shuffled order of emission. Where spans go is pure
integer arithmetic on positions; the tokens are replaced in ``layout.py``.

Letters: ``n`` spans, ``m`` stretches of text that may be masked (a window holds several documents,
and the tokens that open and close a document are never masked).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from glm_dist.data.objectives.base import NO_BLANKS, Blanks, Plan, Window
from glm_dist.data.tokenizer.special_tokens import SpecialTokens

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LONGEST_SPAN = 39
"""Official GLM draws from 1 to 39 tokens."""


@dataclass(frozen=True, eq=False)
class SpanHiding:
    """Chooses short spans."""

    special: SpecialTokens
    max_blanks: int
    mask_ratio: float
    """Share of the window's tokens to hide; 0 hides one span."""
    length_cdf: NDArray[np.float64]
    name: str = "span"
    varies_inputs: bool = True

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
        return replace(self, max_blanks=1, mask_ratio=0.0, name="single_span", varies_inputs=False)

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


@dataclass(frozen=True)
class Stretches:
    """Maximal runs of tokens that may be masked, in text order."""

    starts: Integers
    """First position of each run. [m]"""
    lengths: Integers
    """Tokens in each run, at least 1. [m]"""


def span_length_probabilities(mean: float) -> Floats:
    """Give the probability of each span length.

    Args:
        mean: Mean of the Poisson distribution before it is cut to 1 … ``LONGEST_SPAN``.

    Returns:
        Probability of length ``i + 1`` at index ``i``; they add up to 1. [LONGEST_SPAN]
    """
    lengths = range(1, LONGEST_SPAN + 1)
    mass = [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in lengths]
    return np.array(mass) / math.fsum(mass)


def largest_span_count(probabilities: Floats, num_tokens: int) -> int:
    """Choose how many spans a row must have room for.

    Lengths are drawn until they cover ``num_tokens``, which on average overshoots by a token or so.
    Stopping also after a fixed number of draws leaves the distribution of lengths untouched (both
    rules look only at draws already made). The number returned is the smallest with which the
    tokens covered are ``num_tokens`` on average, so that rows carry little padding and no bias.

    Args:
        probabilities: Of lengths 1, 2, …
        num_tokens: Tokens to cover, at least 1.
    """
    mean_length = float(probabilities @ np.arange(1, len(probabilities) + 1))
    # unfinished[t]: probability that the draws so far cover exactly t < num_tokens tokens; its sum
    # is the probability that another draw is needed.
    unfinished = np.zeros(num_tokens)
    unfinished[0] = 1.0
    count, mean_count = 0, 0.0
    while mean_count * mean_length < num_tokens * (1 - 1e-9):  # rounding must not loop forever
        mean_count += unfinished.sum()
        count += 1
        unfinished = np.convolve(np.concatenate(([0.0], probabilities)), unfinished)[:num_tokens]
    return count


def find_stretches(is_border: NDArray[np.bool_]) -> Stretches:
    """Find the maximal runs of tokens that may be masked.

    Args:
        is_border: Whether each token of the window opens or closes a document. [w]
    """
    borders = is_border.nonzero()[0]
    edges = np.empty(len(borders) + 2, np.int64)  # the borders, and one beyond each end
    edges[0], edges[1:-1], edges[-1] = -1, borders, len(is_border)
    lengths = edges[1:] - edges[:-1] - 1
    kept = lengths > 0
    return Stretches(edges[:-1][kept] + 1, lengths[kept])


def choose_spans(
    stretches: Stretches,
    rng: Generator,
    *,
    length_cdf: Floats,
    num_tokens: int,
    max_spans: int,
) -> Blanks:
    """Draw spans that cover a number of tokens of a window.

    Args:
        stretches: Runs that may be masked.
        rng: Draws lengths, places and order.
        length_cdf: Cumulative probabilities of lengths 1, 2, …
        num_tokens: Tokens to cover; the last span may overshoot.
        max_spans: Most spans the row has room for.

    Returns:
        Spans in a uniformly random order of emission, each inside one stretch, with at least one
        visible token between any two. Spans for which the text has no room are left out.
    """
    if len(stretches.lengths) == 0:
        return NO_BLANKS
    draws = rng.random((3, max_spans))
    lengths = length_cdf.searchsorted(draws[0], side="right") + 1
    count = int(lengths.cumsum().searchsorted(num_tokens)) + 1
    lengths = lengths[:count]
    if len(stretches.lengths) == 1:
        placed = _place_in_one(lengths, stretches, draws[1])
    else:
        placed = _place_in_several(lengths, stretches, draws[1], turn=rng.random())
    order = draws[2, : len(placed.lengths)].argsort()
    return Blanks(placed.starts[order], placed.lengths[order])


def _place_in_one(lengths: Integers, stretches: Stretches, draws: Floats) -> Blanks:
    """Place spans in the only stretch; sorted by start.

    Official rule: with ``free`` tokens left over, beside spans and the gaps between them, each span
    draws a place in 0 … free; the sorted places are the visible tokens before it.
    """
    ends = lengths.cumsum()
    room = int(stretches.lengths[0])
    if ends[-1] + len(lengths) - 1 > room:
        kept = int((ends + np.arange(len(lengths))).searchsorted(room, side="right"))
        lengths, ends = lengths[:kept], ends[:kept]
    count = len(lengths)
    free = room - int(lengths.sum()) - count + 1
    places = (draws[:count] * (free + 1)).astype(np.int64)
    places.sort()
    return Blanks(stretches.starts[0] + places + (ends - lengths) + np.arange(count), lengths)


def _place_in_several(
    lengths: Integers, stretches: Stretches, draws: Floats, *, turn: float
) -> Blanks:
    """Place spans in stretches, in proportion to their lengths; sorted by start.

    The spans are laid end to end along the text, turned by a random amount, and each goes to the
    stretch where its middle falls. A span for which no stretch has room is left out.
    """
    ends, text_ends = lengths.cumsum(), stretches.lengths.cumsum()
    middles = ((ends - lengths / 2) / ends[-1] + turn) % 1.0
    homes = text_ends.searchsorted(middles * text_ends[-1], side="right")
    homes = np.minimum(homes, len(text_ends) - 1)  # a product rounded up would fall off the end
    order = homes.argsort(kind="stable")
    homes, lengths = homes[order], lengths[order]
    counts, loads = _counts_and_loads(homes, lengths, len(stretches.lengths))
    if (loads + counts > stretches.lengths + 1).any():
        _rehome(lengths, homes, stretches.lengths)
        order = homes.argsort(kind="stable")
        order = order[homes[order] >= 0]
        homes, lengths = homes[order], lengths[order]
        counts, loads = _counts_and_loads(homes, lengths, len(stretches.lengths))
    free = stretches.lengths - loads - counts + 1
    far = int(text_ends[-1]) + 1  # keeps the places of different stretches apart while sorting
    places = (draws[: len(homes)] * (free[homes] + 1)).astype(np.int64) + homes * far
    places.sort()
    # Tokens of earlier spans, and their gaps, in the same stretch.
    before = lengths.cumsum() - lengths + np.arange(len(homes))
    within = before - before[(counts.cumsum() - counts)[homes]]
    return Blanks(stretches.starts[homes] + places - homes * far + within, lengths)


def _counts_and_loads(
    homes: Integers, lengths: Integers, num_stretches: int
) -> tuple[Integers, Integers]:
    """Count spans and their tokens in each stretch."""
    counts = np.bincount(homes, minlength=num_stretches)
    loads = np.bincount(homes, weights=lengths, minlength=num_stretches).astype(np.int64)
    return counts, loads


def _rehome(lengths: Integers, homes: Integers, room: Integers) -> None:
    """Move spans out of stretches that are too full, in place; -1 where nothing has room.

    A span takes its length and one gap; the last span of a stretch needs no gap behind it, hence
    one token more in each stretch.
    """
    free = room + 1
    homeless = []
    for span, home in enumerate(homes):
        if lengths[span] + 1 <= free[home]:
            free[home] -= lengths[span] + 1
        else:
            homeless.append(span)
    for span in homeless:
        home = int(free.argmax())
        fits = lengths[span] + 1 <= free[home]
        homes[span] = home if fits else -1
        if fits:
            free[home] -= lengths[span] + 1


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
