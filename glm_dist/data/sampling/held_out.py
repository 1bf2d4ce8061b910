"""Rows of text that is never trained on: held-out documents, and corpora kept for validation.

A row depends on its corpus, its objective and its index alone: on no seed, no weight and no other
corpus, so that losses of different runs can be compared.
"""

from collections.abc import Sequence
from dataclasses import replace

from glm_dist.data.corpus.splits import TokenStream
from glm_dist.data.objectives.base import Objective
from glm_dist.data.objectives.mixture import Mixture, Vocabulary
from glm_dist.data.rows import Row
from glm_dist.data.sampling.epoch import KeyedPermutation, read_window
from glm_dist.data.sampling.randomness import Purpose, RowGenerators
from glm_dist.errors import DataError
from glm_dist.seeds import derive_keys, name_key


class HeldOutCorpus:
    """Held-out text of one corpus."""

    def __init__(self, stream: TokenStream, mixture: Mixture, vocabulary: Vocabulary) -> None:
        """Join text and objectives.

        Args:
            stream: The text, with the name of its corpus.
            mixture: Objectives.
            vocabulary: Special tokens.
        """
        self.name = stream.name
        self.mixture = mixture
        self.stream = stream
        self._vocabulary = vocabulary
        self._key = name_key(stream.name)
        self._rng = RowGenerators(0, Purpose.VALIDATION_ROW)

    def row(self, objective: Objective, index: int) -> Row:
        """Build a row; windows are visited in a random order that is always the same.

        Args:
            objective: Objective to measure.
            index: 0, 1, 2, … without end.
        """
        size = self.stream.num_tokens
        length = min(objective.window_length - 1, size)
        num_slots = -(-size // length)
        epoch, turn = divmod(index, num_slots)
        slot = KeyedPermutation(num_slots, derive_keys("validation", self.name))(turn)
        rng = self._rng.at(corpus=self._key, epoch=epoch, slot=slot)
        position = slot * length
        window = read_window(self.stream, position, min(length, size - position), self._vocabulary)
        return objective.build(window, rng)


class HeldOutRows:
    """Held-out text of all corpora."""

    def __init__(self, corpora: Sequence[HeldOutCorpus]) -> None:
        """Keep the corpora that hold text.

        Args:
            corpora: May be none, where nothing is measured.
        """
        self._corpora = {corpus.name: corpus for corpus in corpora if corpus.stream.num_tokens}

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, as in metrics."""
        return next(iter(self._corpora.values())).mixture.names if self._corpora else ()

    def names(self) -> tuple[str, ...]:
        """Return the names of the corpora.

        Raises:
            DataError: There is none.
        """
        if not self._corpora:
            raise DataError(
                "There is nothing to validate on: no documents are held out.\n"
                "  Set data.validation_share=0.05 or data.validation_corpora.<name>=<prefix>, or"
                " evaluation=none.",
                key="data.validation_share",
                value=0,
                fix="data.validation_share=0.05",
            )
        return tuple(self._corpora)

    def row(self, objective: str, corpus: str, index: int) -> Row:
        """Build a row.

        Args:
            objective: One of ``objectives``.
            corpus: One of ``names``.
            index: 0, 1, 2, … without end.
        """
        held_out = self._corpora[corpus]
        row = held_out.row(held_out.mixture.named(objective), index)
        return replace(row, index=index, corpus=corpus)
