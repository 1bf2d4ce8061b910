"""Ids of GLM's special tokens, as plain numbers, so that row building needs no tokenizer.

The official ids of every tokenizer kind are in ``tokenizer.py``; here is only their shape.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens of one tokenizer.

    ``gmask`` and ``smask`` equal ``mask`` where the tokenizer has no task masks, so that an
    objective never asks which case it is in; ``has_task_masks`` tells them apart.
    """

    pad: int
    eos: int
    """Closes every document; official GLM uses one id for eos and padding."""
    cls: int
    """Opens every document; official code calls it ENC."""
    mask: int
    """Stands for a short blank (span objective)."""
    sop: int
    """Start of piece: first input of every blank in Part B."""
    eop: int
    """End of piece: last target of every blank."""
    gmask: int
    """Stands for a long blank (document objective)."""
    smask: int
    """Stands for a whole sentence (sentence objective)."""
    unk: int
    sep: int
    block_mask: int
    """Hides a Part B input; official name dBLOCK. Never a target, so it may lie behind the ids that
    the model predicts, in a padded row of the embedding table."""
    first_sentinel: int = -1
    """Mask of the first pair of sentinels; -1 without sentinels."""
    sentinel_pairs: int = 0

    @property
    def has_task_masks(self) -> bool:
        """Return True if long blanks and sentences have their own mask tokens."""
        return self.gmask != self.mask

    @property
    def masks(self) -> frozenset[int]:
        """Tokens that stand for a blank without sentinels."""
        return frozenset((self.mask, self.gmask, self.smask))

    def sentinel_mask(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the masks [MASK1], [MASK2], … by numbers 0, 1, …; the last one for any beyond."""
        return self.first_sentinel + 2 * np.minimum(number, self.sentinel_pairs - 1)

    def sentinel_sop(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the starts of piece that belong to the masks."""
        return self.sentinel_mask(number) + 1


class NamedToken(NamedTuple):
    """A special token named in a text."""

    token: int
    """Its id."""
    begin: int
    """First character of the name."""
    end: int
    """One past its last character."""
