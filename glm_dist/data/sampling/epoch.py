"""Row number of one corpus -> window and objective, by arithmetic alone.

In each epoch the training tokens form a ring, which starts at a random token and is cut into slots,
one for each row. The objectives take turns along the ring in their exact shares; each has its own
window length, so the place of slot i is a closed formula. Rows visit the slots in a keyed random
order. Every token is in exactly one row of each epoch; nothing is stored, and nothing depends on
how many rows will ever be read.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.corpus.splits import TokenStream
from glm_dist.data.objectives.base import Objective, Window
from glm_dist.data.objectives.mixture import Mixture, Vocabulary
from glm_dist.data.rows import Row
from glm_dist.data.sampling.permutation import KeyedPermutation
from glm_dist.data.sampling.proportions import ProportionalSequence
from glm_dist.data.sampling.randomness import Purpose, RowGenerators
from glm_dist.errors import DataError
from glm_dist.seeds import derive_keys, name_key

SURVEY_WINDOWS = 32


@dataclass(frozen=True)
class RowAddress:
    """Where one row comes from."""

    epoch: int
    """Pass over the corpus."""
    slot: int
    """Window within the pass, in the order of the text."""
    objective: str
    objective_number: int
    """Its place in the mixture, where a name may stand for a plain and a short form."""
    position: int
    """First token on the ring of the split's tokens."""
    length: int
    """Tokens taken from the ring."""


@dataclass(frozen=True, eq=False)
class SlotPlan:
    """How one pass over a ring of tokens is cut into slots."""

    sequence: ProportionalSequence
    """Objective of each slot."""
    offsets: NDArray[np.int64]
    """Tokens before each slot of one period of the sequence, and in all of it. [period + 1]"""
    num_tokens: int
    """Tokens on the ring."""

    @staticmethod
    def create(mixture: Mixture, num_tokens: int) -> "SlotPlan":
        """Plan a pass; one token of each window is left for an opening [CLS]."""
        sequence = ProportionalSequence.create(mixture.shares)
        sizes = np.array([objective.window_length - 1 for objective in mixture.objectives])
        offsets = np.concatenate(([0], sizes[sequence.states].cumsum()))
        return SlotPlan(sequence, offsets, num_tokens)

    @property
    def num_slots(self) -> int:
        """Slots of a pass; the last one may be shorter than the others."""
        periods, rest = divmod(self.num_tokens, int(self.offsets[-1]))
        return periods * self.sequence.period + int(self.offsets.searchsorted(rest))

    def slot(self, number: int) -> tuple[int, int, int]:
        """Give a slot's objective, offset from the start of the pass, and tokens."""
        periods, place = divmod(number, self.sequence.period)
        begin = int(self.offsets[place]) + periods * int(self.offsets[-1])
        end = begin + int(self.offsets[place + 1] - self.offsets[place])
        return int(self.sequence.states[place]), begin, min(end, self.num_tokens) - begin


class CorpusRows:
    """All rows of one corpus."""

    def __init__(
        self,
        name: str,
        *,
        training: TokenStream,
        validation: TokenStream,
        mixture: Mixture,
        vocabulary: Vocabulary,
        seed: int,
    ) -> None:
        """Join text and objectives.

        Args:
            name: Name of the corpus; its randomness depends on it and not on other corpora.
            training: Training tokens.
            validation: Held-out tokens.
            mixture: Objectives and shares.
            vocabulary: Special tokens.
            seed: Seed of the run; validation rows do not depend on it.
        """
        self.name = name
        self.mixture = mixture
        self.training = training
        self.validation = validation
        self._vocabulary = vocabulary
        self._seed = seed
        self._key = name_key(name)
        self._training_rng = RowGenerators(seed, Purpose.TRAINING_ROW)
        self._validation_rng = RowGenerators(0, Purpose.VALIDATION_ROW)
        self._plan = SlotPlan.create(mixture, training.num_tokens)
        self._num_slots = self._plan.num_slots

    @property
    def rows_per_epoch(self) -> int:
        """Training rows that hold every training token once."""
        return self._num_slots

    def locate(self, number: int) -> RowAddress:
        """Find where a training row comes from.

        Args:
            number: Row of this corpus, 0, 1, 2, … without end.
        """
        epoch, turn = divmod(number, self._num_slots)
        order, phase = _epoch(self._seed, self.name, epoch, self._num_slots)
        slot = order(turn)
        objective, offset, length = self._plan.slot(slot)
        size = self.training.num_tokens
        return RowAddress(
            epoch=epoch,
            slot=slot,
            objective=self.mixture.objectives[objective].name,
            objective_number=objective,
            position=(phase % size + offset) % size,
            length=length,
        )

    def row(self, number: int) -> Row:
        """Build a training row."""
        address = self.locate(number)
        objective = self.mixture.objectives[address.objective_number]
        rng = self._training_rng.at(corpus=self._key, epoch=address.epoch, slot=address.slot)
        window = read_window(self.training, address.position, address.length, self._vocabulary)
        return objective.build(window, rng)

    def validation_row(self, objective: Objective, number: int) -> Row:
        """Build a validation row: the same for every seed, and spread over the held-out text.

        Args:
            objective: Objective to test.
            number: Row of this corpus, 0, 1, 2, … without end.
        """
        size = self.validation.num_tokens
        length = min(objective.window_length - 1, size)
        num_slots = -(-size // length)
        epoch, turn = divmod(number, num_slots)
        slot = KeyedPermutation(num_slots, derive_keys("validation", self.name))(turn)
        rng = self._validation_rng.at(corpus=self._key, epoch=epoch, slot=slot)
        position = slot * length
        window = read_window(
            self.validation, position, min(length, size - position), self._vocabulary
        )
        return objective.build(window, rng)


@lru_cache(maxsize=16)
def _epoch(seed: int, corpus: str, epoch: int, num_slots: int) -> tuple[KeyedPermutation, int]:
    """Derive an epoch's order and where it begins; remembered, for rows come epoch by epoch."""
    order = KeyedPermutation(num_slots, derive_keys("order", seed, corpus, epoch))
    return order, derive_keys("phase", seed, corpus, epoch)[0]


def read_window(stream: TokenStream, position: int, length: int, vocabulary: Vocabulary) -> Window:
    """Read a window and open it with [CLS] where the text does not.

    Args:
        stream: Tokens.
        position: First token.
        length: Tokens to read.
        vocabulary: Special tokens.

    Raises:
        DataError: The text holds ids the tokenizer does not know.
    """
    tokens = stream.read(position, length)
    largest = int(tokens.max())
    if largest >= vocabulary.size:
        raise DataError(
            key=f"data.corpora.{stream.name}.prefix",
            found=f"a corpus with token id {largest}",
            expected=f"ids below {vocabulary.size}, the size of the tokenizer",
            fix="use the tokenizer the corpus was prepared with, or prepare it again",
        )
    if tokens[0] == vocabulary.special.cls:
        return Window(tokens, starts_mid_document=False)
    opened = np.concatenate(([vocabulary.special.cls], tokens))
    return Window(opened, starts_mid_document=True)


def survey_windows(stream: TokenStream, vocabulary: Vocabulary, *, row_length: int) -> list[Window]:
    """Read a few windows spread evenly over a corpus.

    Args:
        stream: Tokens.
        vocabulary: Special tokens.
        row_length: Tokens of a row; a window is a little shorter.
    """
    length = min(stream.num_tokens, row_length)
    places = range(SURVEY_WINDOWS)
    return [
        read_window(stream, stream.num_tokens * place // SURVEY_WINDOWS, length, vocabulary)
        for place in places
    ]
