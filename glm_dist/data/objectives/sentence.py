"""Whole sentences as blanks (GLM's sentence-level objective).

A sentence ends with a token whose text holds an end mark; which tokens those are is a table made
once per tokenizer, so that building a row handles no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from glm_dist.data.objectives.base import NO_BLANKS, Blanks, Plan, Window
from glm_dist.data.objectives.span import Stretches, text_of
from glm_dist.data.sampling.randomness import draw_below
from glm_dist.data.tokenizer.special_tokens import SpecialTokens


def find_sentences(
    tokens: NDArray[np.int64],
    ends_sentence: NDArray[np.bool_],
    special: SpecialTokens,
    *,
    starts_mid_document: bool,
    documents_end: bool = False,
) -> Stretches:
    """Find the sentences of a window.

    A piece before a document's end without an end mark is no sentence, but for text that has no
    such marks (``documents_end``); neither is the
    rest of one that a window starting inside a document begins with. The piece that the window's
    end cuts off counts as a sentence, as in the official code.

    Args:
        tokens: Window. [w]
        ends_sentence: Whether a token id holds an end mark. [v]
        special: Ids of the special tokens.
        starts_mid_document: Whether the window's first piece continues an earlier sentence.
        documents_end: Whether the end of a document ends a sentence, too.
    """
    is_border = (tokens == special.cls) | (tokens == special.eos)
    is_end = ends_sentence[tokens] & ~is_border
    if documents_end:
        is_end[:-1] |= is_border[1:] & ~is_border[:-1]
    stops = np.flatnonzero(is_end | is_border)
    if len(stops) == 0 or stops[-1] != len(tokens) - 1:
        stops = np.append(stops, len(tokens) - 1)
        is_end[-1] = True
    starts = np.concatenate(([0], stops[:-1] + 1))
    is_sentence = is_end[stops]
    if starts_mid_document and is_sentence.sum() > 1:
        is_sentence[is_sentence.argmax()] = False
    return Stretches(starts[is_sentence], (stops + 1 - starts)[is_sentence])


def choose_sentences(
    sentences: Stretches, rng: Generator, *, num_tokens: int, max_sentences: int
) -> Blanks:
    """Take random sentences until they cover a number of tokens.

    Args:
        sentences: To choose from.
        rng: Draws the order, which is the order of emission too.
        num_tokens: Tokens to cover; the last sentence may overshoot.
        max_sentences: Most sentences the row has room for.
    """
    order = rng.random(len(sentences.lengths)).argsort()
    covered = sentences.lengths[order].cumsum()
    count = int(covered.searchsorted(num_tokens)) + 1
    chosen = order[: min(count, max_sentences)]
    return Blanks(sentences.starts[chosen], sentences.lengths[chosen])


@dataclass(frozen=True, eq=False)
class SentenceHiding:
    """Chooses whole sentences."""

    special: SpecialTokens
    max_blanks: int
    """Depends on how long the corpus's sentences are."""
    mask_ratio: float
    ends_sentence: NDArray[np.bool_]
    """True for ids that end a sentence. [v]"""
    documents_end: bool = False
    """True if the end of a document ends a sentence, too."""
    name: str = "sentence"
    varies_inputs: bool = False

    @property
    def mask(self) -> int:
        """Token that stands for a blank."""
        return self.special.smask

    def choose(self, window: Window, rng: Generator) -> Plan:
        """Choose sentences; see ``Hiding``.

        A sentence of more than half the window is left alone: hiding it would leave too little
        to read. Where that leaves none (text without end marks), one stretch of the wanted size
        is hidden instead.
        """
        tokens = window.tokens
        num_tokens = max(1, int(self.mask_ratio * len(tokens)))
        sentences = find_sentences(
            tokens,
            self.ends_sentence,
            self.special,
            starts_mid_document=window.starts_mid_document,
            documents_end=self.documents_end,
        )
        short = sentences.lengths <= max(len(tokens) // 2, num_tokens)
        if short.any():
            sentences = Stretches(sentences.starts[short], sentences.lengths[short])
            blanks = choose_sentences(
                sentences, rng, num_tokens=num_tokens, max_sentences=self.max_blanks
            )
            return Plan.of_middles(blanks)
        text = text_of(tokens, self.special)
        if len(text.lengths) == 0:
            return Plan.of_middles(NO_BLANKS)
        longest = int(text.lengths.argmax())
        length = min(num_tokens, int(text.lengths[longest]))
        places = int(text.lengths[longest]) - length + 1
        start = int(text.starts[longest]) + draw_below(rng, places)
        return Plan.of_middles(Blanks(np.array([start]), np.array([length])))

    def share_of_text(self, windows: Sequence[Window]) -> float:
        """Measure the share of text, 0 to 1, that lies in sentences which may be hidden.

        Args:
            windows: Of one corpus. The piece that each window's end cuts off does not count.
        """
        in_sentences = total = 0
        for window in windows:
            found = find_sentences(
                window.tokens,
                self.ends_sentence,
                self.special,
                starts_mid_document=window.starts_mid_document,
                documents_end=self.documents_end,
            )
            ends = found.starts + found.lengths
            whole = (found.lengths <= len(window.tokens) // 2) & (ends < len(window.tokens))
            in_sentences += int(found.lengths[whole].sum())
            total += len(window.tokens)
        return in_sentences / max(1, total)
