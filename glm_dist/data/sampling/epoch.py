"""Row number of one corpus -> window and objective, by arithmetic alone.

In each epoch the training tokens form a ring, which starts at a random token and is cut into slots,
one for each row. The objectives take turns along the ring in their exact shares; each has its own
window length, so slot i begins at a sum of count times length. Rows visit the slots in a keyed
random order. Every token is in exactly one row of each epoch; nothing is stored, and nothing
depends on how many rows will ever be read.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from glm_dist.data.corpus.splits import TokenStream
from glm_dist.data.objectives.base import Window
from glm_dist.data.objectives.mixture import Mixture, Vocabulary
from glm_dist.data.rows import Row
from glm_dist.data.sampling.mixing import Turns
from glm_dist.data.sampling.randomness import Purpose, RowGenerators
from glm_dist.errors import DataError
from glm_dist.seeds import derive_keys, name_key

SURVEY_WINDOWS = 32

LEAST_SLOTS = 64
"""Slots in which several objectives get their shares to a few percent; a corpus that has fewer is
planned over several passes."""

_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class RowAddress:
    """Origin of one row."""

    epoch: int
    """Round over the corpus: one pass, or several over a small corpus."""
    slot: int
    """Window within the round, in the order of the text."""
    objective: str
    objective_number: int
    """Its place in the mixture, where a name may stand for a plain and a short form."""
    position: int
    """First token on the ring of the split's tokens."""
    length: int
    """Tokens taken from the ring."""


class SlotPlan:
    """Slots of one round over a ring of tokens.

    A round is one pass, or so many that several objectives get their shares.
    """

    def __init__(self, mixture: Mixture, num_tokens: int) -> None:
        """Plan a round.

        Args:
            mixture: Objectives, which take turns; one token of a window is left for an opening
                [CLS].
            num_tokens: Tokens on the ring.
        """
        self._turns = Turns(mixture.shares)
        sizes = [objective.window_length - 1 for objective in mixture.objectives]
        self._sizes = [min(size, num_tokens) for size in sizes]
        self.passes = 1
        """Times that every token is read in a round."""
        self._num_tokens = num_tokens
        self.num_slots = self._count()
        """Slots of a round; the last one may be shorter than the others."""
        if self.num_slots < LEAST_SLOTS and len(sizes) > 1:
            self.passes = -(-LEAST_SLOTS * max(self._sizes) // num_tokens)
            self._num_tokens *= self.passes
            self.num_slots = self._count()

    def _count(self) -> int:
        most = -(-self._num_tokens // min(self._sizes))
        return bisect_left(range(most), self._num_tokens, key=self._tokens_before)

    def slot(self, number: int) -> tuple[int, int, int]:
        """Give a slot's objective, offset from the start of the round, and tokens."""
        objective, _ = self._turns.locate(number)
        begin = self._tokens_before(number)
        return objective, begin, min(self._sizes[objective], self._num_tokens - begin)

    def _tokens_before(self, number: int) -> int:
        counts = self._turns.counts_before(number)
        return sum(count * size for count, size in zip(counts, self._sizes, strict=True))


@dataclass(frozen=True)
class KeyedPermutation:
    """A shuffle without a table: a permutation of 0 … size - 1 with random access.

    A Feistel network on a × b cells, the least rectangle that holds ``size``: each round adds to
    one coordinate a hash of the other, which can be undone whatever the hash. The few cells beyond
    ``size`` are skipped by walking on along their cycle.
    """

    size: int
    keys: tuple[int, ...]
    """64-bit keys, an even number of rounds."""

    def __call__(self, index: int) -> int:
        """Give the place of an index, 0 to size - 1."""
        rows = max(1, math.isqrt(self.size - 1) + 1)
        columns = -(-self.size // rows)
        while True:
            row, column = divmod(index, columns)
            for key_of_row, key_of_column in zip(self.keys[::2], self.keys[1::2], strict=True):
                row = (row + _mix(column ^ key_of_row)) % rows
                column = (column + _mix(row ^ key_of_column)) % columns
            index = row * columns + column
            if index < self.size:
                return index


def _mix(word: int) -> int:
    """Scatter 64 bits (the finaliser of SplitMix64)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)


class CorpusRows:
    """All rows of one corpus."""

    def __init__(
        self,
        training: TokenStream,
        *,
        mixture: Mixture,
        vocabulary: Vocabulary,
        seed: int,
    ) -> None:
        """Join text and objectives.

        Args:
            training: Training tokens, with the name of their corpus; the randomness of its rows
                depends on the name and not on other corpora.
            mixture: Objectives and shares.
            vocabulary: Special tokens.
            seed: Seed of the run.
        """
        self.name = training.name
        self.mixture = mixture
        self.training = training
        self._vocabulary = vocabulary
        self._seed = seed
        self._key = name_key(training.name)
        self._training_rng = RowGenerators(seed, Purpose.TRAINING_ROW)
        self._plan = SlotPlan(mixture, training.num_tokens)
        self._num_slots = self._plan.num_slots

    @property
    def rows_per_round(self) -> int:
        """Training rows that hold every training token ``passes_per_round`` times."""
        return self._num_slots

    @property
    def passes_per_round(self) -> int:
        """Passes over the training tokens in a round; 1 but for small corpora."""
        return self._plan.passes

    @property
    def padding(self) -> float:
        """Share of rows, 0 to 1, for which the corpus has too little text."""
        room = max(objective.window_length - 1 for objective in self.mixture.objectives)
        return max(0.0, 1 - self.training.num_tokens / room)

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
            f"data.corpora.{stream.name} holds token id {largest}, but the tokenizer has only"
            f" {vocabulary.size} ids.\n"
            "  Set tokenizer.path to the tokenizer it was prepared with, or prepare it again.",
            key=f"data.corpora.{stream.name}.prefix",
            value=largest,
            fix="tokenizer.path=…",
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
