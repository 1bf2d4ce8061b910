"""The paper's baselines on the same model and trainer: BERT, GPT, T5 and UniLM.

Every baseline is a choice of inputs, targets and prefix length under the one attention rule: a
query sees all of the prefix and what is before it. None uses the second position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from glm_dist.data.objectives.base import Blanks, Objective, Window
from glm_dist.data.objectives.span import SpanHiding
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.special_tokens import SpecialTokens


@dataclass(frozen=True, eq=False)
class CausalLM:
    """Predict the next token from those before (GPT)."""

    special: SpecialTokens
    row_length: int
    name: str = "causal_lm"

    @property
    def window_length(self) -> int:
        """Inputs are all tokens but the last, targets all but the first."""
        return self.row_length + 1

    def build(self, window: Window, rng: Generator) -> Row:
        """Make a row; what follows a document's end is not trained."""
        inputs, targets = window.tokens[:-1], window.tokens[1:]
        return _padded(
            self.special,
            self.name,
            self.row_length,
            inputs=inputs,
            targets=targets,
            positions=np.arange(len(inputs)),
            predicted=inputs != self.special.eos,
            prefix_length=0,
        )


class Sight(Enum):
    """Context that a masked token's prediction sees."""

    both = "both"
    left = "left"
    right = "right"
    source = "source"


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """Predict masked tokens in their place: BERT sees both sides; UniLM mixes four views."""

    special: SpecialTokens
    row_length: int
    spans: SpanHiding
    """Choice of the masked tokens, each replaced by [MASK]; official code masks spans too."""
    sight: Sight = Sight.both
    name: str = "masked_lm"

    @property
    def window_length(self) -> int:
        """Nothing is added to the text."""
        return self.row_length

    def build(self, window: Window, rng: Generator) -> Row:
        """Make a row; see ``Objective``."""
        tokens = window.tokens
        blanks = self.spans.choose(window, rng).blanks
        offsets = blanks.lengths.cumsum() - blanks.lengths
        within = np.arange(int(blanks.lengths.sum())) - offsets.repeat(blanks.lengths)
        masked = np.zeros(len(tokens), np.bool_)
        masked[blanks.starts.repeat(blanks.lengths) + within] = True
        if self.sight is Sight.both:
            return mask_in_place(tokens, masked, self.special, self.name, self.row_length)
        inputs = np.where(masked, self.special.mask, tokens)
        positions = np.arange(len(tokens))
        prefix_length = 0
        if self.sight is Sight.source:
            # The text up to a random place in its middle half is the source.
            prefix_length = int(len(tokens) * (0.25 + 0.5 * rng.random()))
        elif self.sight is Sight.right:
            inputs, tokens, masked = inputs[::-1], tokens[::-1], masked[::-1]
            positions = positions[::-1]
        return _padded(
            self.special,
            self.name,
            self.row_length,
            inputs=inputs,
            targets=tokens,
            positions=positions,
            predicted=masked,
            prefix_length=prefix_length,
        )


@dataclass(frozen=True, eq=False)
class SpanCorruption:
    """Write the spans that sentinels stand for, left to right (T5), as a prefix model."""

    special: SpecialTokens
    row_length: int
    spans: SpanHiding
    name: str = "span_corruption"

    @property
    def window_length(self) -> int:
        """Each span costs a sentinel on both sides, the whole an end."""
        return self.row_length - 2 * self.spans.max_blanks - 1

    def build(self, window: Window, rng: Generator) -> Row:
        """Make a row; see ``Objective``."""
        blanks = self.spans.choose(window, rng).blanks
        return write_after_sentinels(
            window.tokens, blanks, self.special, self.name, self.row_length
        )


def mask_in_place(
    tokens: NDArray[np.int64],
    masked: NDArray[np.bool_],
    special: SpecialTokens,
    objective: str,
    row_length: int | None = None,
) -> Row:
    """Hide tokens by [MASK], one for each, in a text that is seen from both sides (BERT).

    Args:
        tokens: Text. [w]
        masked: True for hidden tokens. [w]
        special: Ids of the special tokens.
        objective: Name noted in the row.
        row_length: Length to pad to; None: no padding.
    """
    return _padded(
        special,
        objective,
        row_length,
        inputs=np.where(masked, special.mask, tokens),
        targets=tokens,
        positions=np.arange(len(tokens)),
        predicted=masked,
        prefix_length=len(tokens),
    )


def write_after_sentinels(
    tokens: NDArray[np.int64],
    blanks: Blanks,
    special: SpecialTokens,
    objective: str,
    row_length: int | None = None,
) -> Row:
    """Put a sentinel in the place of each span, and write sentinels and spans after the text (T5).

    Args:
        tokens: Text. [w]
        blanks: Spans to hide; they do not overlap.
        special: Ids of the special tokens.
        objective: Name noted in the row.
        row_length: Length to pad to; None: no padding.
    """
    order = blanks.starts.argsort()
    source: list[NDArray[np.int64]] = []
    answer: list[NDArray[np.int64]] = []
    done = 0
    sentinels = special.sentinel_mask(np.arange(len(order)))
    for number, start, length in zip(
        range(len(order)),
        blanks.starts[order].tolist(),
        blanks.lengths[order].tolist(),
        strict=True,
    ):
        sentinel = sentinels[number : number + 1]
        source += [tokens[done:start], sentinel]
        answer += [sentinel, tokens[start : start + length]]
        done = start + length
    prefix = np.concatenate([*source, tokens[done:]])
    targets = np.concatenate([*answer, [special.eop]])
    inputs = np.concatenate([prefix, [special.sop], targets[:-1]])
    return _padded(
        special,
        objective,
        row_length,
        inputs=inputs,
        targets=np.concatenate([prefix, targets]),
        positions=np.arange(len(inputs)),
        predicted=np.arange(len(inputs)) >= len(prefix),
        prefix_length=len(prefix),
    )


def unilm_mixture(
    special: SpecialTokens, row_length: int, spans: SpanHiding
) -> Sequence[tuple[Objective, Fraction]]:
    """List UniLM's four views: a third both ways, a third source to target, a sixth each way.

    Args:
        special: Ids of the special tokens.
        row_length: Tokens of a row.
        spans: Which tokens are masked.
    """
    views = [
        (Sight.both, "unilm_both", Fraction(1, 3)),
        (Sight.source, "unilm_source", Fraction(1, 3)),
        (Sight.left, "unilm_left", Fraction(1, 6)),
        (Sight.right, "unilm_right", Fraction(1, 6)),
    ]
    return [
        (MaskedLM(special, row_length, spans, sight=sight, name=name), share)
        for sight, name, share in views
    ]


def _padded(
    special: SpecialTokens,
    objective: str,
    row_length: int | None,
    *,
    inputs: NDArray[np.int64],
    targets: NDArray[np.int64],
    positions: NDArray[np.int64],
    predicted: NDArray[np.bool_],
    prefix_length: int,
) -> Row:
    """Pad arrays of one length to a row."""
    length = len(inputs) if row_length is None else row_length
    room, pad = (0, length - len(inputs)), special.pad
    return Row(
        tokens=np.pad(inputs, room, constant_values=pad),
        positions=np.pad(positions, room),
        block_positions=np.zeros(length, np.int64),
        targets=np.pad(targets, room, constant_values=pad),
        loss_mask=np.pad(predicted, room),
        prefix_length=prefix_length,
        objective=objective,
        num_real_tokens=len(inputs),
    )
