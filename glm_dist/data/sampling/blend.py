"""Which corpus a training row comes from, and how many rows of it came before.

Within a stage the corpora take turns in exact shares (``proportions.py``). A stage begins at a
recorded row; what was read before is a closed formula, so a later stage changes no earlier row.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from glm_dist.config.schema import DataConfig
from glm_dist.data.sampling.proportions import ProportionalSequence


@dataclass(frozen=True, eq=False)
class BlendStage:
    """Rows with constant shares."""

    first_row: int
    sequence: ProportionalSequence
    before: tuple[int, ...]
    """Rows of each corpus in earlier stages. [corpora]"""


class Blend:
    """Turns of all corpora, from row 0 without end."""

    def __init__(self, weights: Sequence[Fraction], later: Sequence[tuple[int, list[Fraction]]]):
        """Plan the stages.

        Args:
            weights: Relative weight of each corpus from row 0 on.
            later: First row and weights of each later stage, in rising order.
        """
        self.stages = [BlendStage(0, ProportionalSequence.create(weights), (0,) * len(weights))]
        for first_row, changed in later:
            before = tuple(self.counts_before(first_row))
            sequence = ProportionalSequence.create(changed)
            self.stages.append(BlendStage(first_row, sequence, before))

    def locate(self, row: int) -> tuple[int, int]:
        """Give a row's corpus, and the rows of that corpus before it."""
        stage = self._stage(row)
        corpus, rank = stage.sequence.locate(row - stage.first_row)
        return corpus, stage.before[corpus] + rank

    def counts_before(self, row: int) -> list[int]:
        """Count the rows of each corpus before a row."""
        stage = self._stage(row)
        counts = stage.sequence.counts_before(row - stage.first_row)
        return [past + count for past, count in zip(stage.before, counts, strict=True)]

    def wanted_before(self, row: int) -> list[float]:
        """Add up each corpus's shares of the rows before a row."""
        wanted = [0.0] * len(self.stages[0].before)
        ends = [*(stage.first_row for stage in self.stages[1:]), row]
        for stage, end in zip(self.stages, ends, strict=True):
            rows = max(0, min(end, row) - stage.first_row)
            for corpus, count in enumerate(stage.sequence.counts):
                wanted[corpus] += rows * count / stage.sequence.period
        return wanted

    def shares(self, row: int) -> list[float]:
        """Give each corpus's share of the rows around a row."""
        sequence = self._stage(row).sequence
        return [count / sequence.period for count in sequence.counts]

    def _stage(self, row: int) -> BlendStage:
        number = bisect_right(self.stages, row, key=lambda stage: stage.first_row)
        return self.stages[number - 1]


def make_blend(config: DataConfig, num_tokens: Sequence[int]) -> Blend:
    """Blend the corpora of a configuration.

    Args:
        config: Weights and stages; checked already.
        num_tokens: Training tokens of each corpus, the weights where none are given.
    """
    corpora = list(config.corpora.values())
    given = [_fraction(corpus.weight) for corpus in corpora if corpus.weight is not None]
    later = [
        (row, [_fraction(corpus.stage_weights[stage]) for corpus in corpora])
        for stage, row in enumerate(config.stage_starts)
    ]
    return Blend(given or [Fraction(tokens) for tokens in num_tokens], later)


def _fraction(weight: float) -> Fraction:
    """Read a weight as the user wrote it: 0.3 is three tenths."""
    return Fraction(str(weight))
