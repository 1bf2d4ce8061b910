"""Interface of every objective: a window of the token stream in, one row out."""

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
    """True if the opening [CLS] was put in front of a document's continuation."""


class Objective(Protocol):
    """One way to make a row of a window."""

    @property
    def name(self) -> str:
        """Name in metrics."""

    @property
    def window_length(self) -> int:
        """Text tokens, opening [CLS] included, that one row has room for."""

    def build(self, window: Window, rng: Generator) -> Row:
        """Make a row.

        Args:
            window: At most ``window_length`` tokens.
            rng: All the row's randomness.
        """


@dataclass(frozen=True)
class Blanks:
    """Spans of one window in the order in which Part B emits them."""

    starts: NDArray[np.int64]
    """First masked position in the window. [n]"""
    lengths: NDArray[np.int64]
    """Masked tokens. [n]"""


NO_BLANKS = Blanks(np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)
class Plan:
    """Blanks to hide in a window."""

    blanks: Blanks
    closes_with_eop: NDArray[np.bool_]
    """True for blanks that end with [eop]; the tail of a text ends with its last token. [n]"""

    @staticmethod
    def of_middles(blanks: Blanks) -> "Plan":
        """Plan blanks that all end with [eop]."""
        return Plan(blanks, np.ones(len(blanks.starts), np.bool_))


class Hiding(Protocol):
    """Choice of what blank infilling hides: the difference between GLM's three objectives."""

    @property
    def name(self) -> str:
        """Name in metrics."""

    @property
    def mask(self) -> int:
        """Token that stands for a blank."""

    @property
    def max_blanks(self) -> int:
        """Most blanks of a row; each costs two tokens beside the text."""

    @property
    def varies_inputs(self) -> bool:
        """True if [dBLOCK] may hide inputs of Part B; in official GLM for plain spans only."""

    def choose(self, window: Window, rng: Generator) -> Plan:
        """Choose what to hide.

        Args:
            window: Text; tokens that open or close a document are never hidden, but for the
                tail of a text.
            rng: Draws the choice and the order of emission.
        """
