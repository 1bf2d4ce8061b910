"""Which ids GLM's special tokens have; plain numbers, so that row building needs no tokenizer.

The official ids of every tokenizer kind are in ``tokenizer.py``; here is only their shape.
"""

from dataclasses import dataclass


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
    """Hides a Part B input; official name dBLOCK. Beyond the vocabulary where it is not enabled."""

    @property
    def has_task_masks(self) -> bool:
        """Whether long blanks and sentences have mask tokens of their own."""
        return self.gmask != self.mask
