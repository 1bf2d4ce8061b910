"""What every objective takes and gives: a window of the token stream in, one row out."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from glm_dist.data.rows import Row


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive tokens of a corpus, opened by [CLS]."""

    tokens: NDArray[np.int64]
    """[w]"""
    starts_mid_document: bool
    """Whether the opening [CLS] was put in front of a document's continuation."""


class Objective(Protocol):
    """One way to make a row of a window."""

    @property
    def name(self) -> str:
        """Name in metrics and in the mixture."""

    @property
    def window_length(self) -> int:
        """Text tokens, opening [CLS] included, that one row has room for."""

    def build(self, window: Window, rng: Generator) -> Row:
        """Make a row.

        Args:
            window: At most ``window_length`` tokens.
            rng: All the row's randomness.
        """
