"""One long blank: the tail of a text, or a middle (GLM's document-level objective)."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from glm_dist.data.objectives.base import Blanks, Plan, Window
from glm_dist.data.objectives.span import document_starts
from glm_dist.data.sampling.randomness import draw_below
from glm_dist.data.tokenizer.special_tokens import SpecialTokens


@dataclass(frozen=True, eq=False)
class DocumentHiding:
    """Draws length and form of the long blank."""

    special: SpecialTokens
    min_ratio: float
    """Shortest share of the text that is hidden."""
    suffix_share: float
    """Share of single documents whose tail is hidden rather than a middle."""
    max_blanks: int = 1
    per_document: bool = False
    """True if each document of a window gets its own blank, the longest first."""
    name: str = "document"
    varies_inputs: bool = False

    @property
    def mask(self) -> int:
        """Token that stands for a blank."""
        return self.special.gmask

    def choose(self, window: Window, rng: Generator) -> Plan:
        """Choose the blank; see ``Hiding``.

        With several documents in the window the tail is hidden always, because a middle must not
        contain a document's end.
        """
        tokens = window.tokens
        if not self.per_document:
            several = bool((tokens[:-1] == self.special.eos).any())
            pieces = [self._blank(0, len(tokens), rng, must_be_tail=several)]
        else:
            starts = document_starts(tokens, self.special)
            longest = np.sort((starts[:-1] - starts[1:]).argsort(kind="stable")[: self.max_blanks])
            pieces = [
                self._blank(int(starts[i]), int(starts[i + 1]), rng, must_be_tail=False)
                for i in longest
            ]
        kept = [piece for piece in pieces if piece is not None]
        blanks = np.array([piece[:2] for piece in kept], np.int64).reshape(-1, 2)
        tails = np.array([piece[2] for piece in kept], np.bool_)
        return Plan(Blanks(blanks[:, 0], blanks[:, 1]), ~tails)

    def _blank(
        self, begin: int, end: int, rng: Generator, *, must_be_tail: bool
    ) -> tuple[int, int, bool] | None:
        """Draw start, length and whether it is the tail; None for a text too short to hide.

        The length is uniform from ``min_ratio`` of the text to the text less two tokens.
        """
        size = end - begin
        longest = size - 2
        if longest < 1:
            return None
        shortest = min(max(1, int(self.min_ratio * size)), longest)
        length = shortest + draw_below(rng, longest - shortest + 1)
        is_tail = bool(rng.random() < self.suffix_share)  # drawn always: one draw, one meaning
        if must_be_tail or is_tail:
            return end - length, length, True
        # [CLS] in front and the last token stay visible, as in the official code.
        return begin + 1 + draw_below(rng, longest - length + 1), length, False
