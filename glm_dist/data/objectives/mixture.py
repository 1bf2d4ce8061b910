"""Which objectives a configuration mixes, and in what shares."""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from glm_dist.config.schema import CorruptionConfig
from glm_dist.data.objectives.base import Objective, Window
from glm_dist.data.objectives.document import DocumentObjective
from glm_dist.data.objectives.sentence import SentenceObjective
from glm_dist.data.objectives.span import SpanObjective
from glm_dist.data.randomness import Purpose, row_generator
from glm_dist.data.special_tokens import SpecialTokens


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What row building needs to know of the tokenizer."""

    special: SpecialTokens
    size: int
    ends_sentence: NDArray[np.bool_]
    """Whether each id ends a sentence. [v]"""
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Mixture:
    """Objectives of one corpus with their shares of the rows."""

    objectives: tuple[Objective, ...]
    shares: tuple[Fraction, ...]

    def named(self, name: str) -> Objective:
        """Find an objective.

        Raises:
            KeyError: It is not in the mixture.
        """
        return {objective.name: objective for objective in self.objectives}[name]


def make_mixture(
    config: CorruptionConfig, vocabulary: Vocabulary, *, row_length: int, survey: list[Window]
) -> Mixture:
    """Build the objectives with a share above 0.

    Args:
        config: Shares and ratios.
        vocabulary: Special tokens and sentence ends.
        row_length: Tokens of a row.
        survey: Windows of the corpus, from which the length of its sentences is learnt.
    """
    special = vocabulary.special
    wanted: list[tuple[Objective, float]] = []
    if config.span_share > 0:
        span = SpanObjective.create(
            special,
            row_length=row_length,
            mask_ratio=config.span_mask_ratio,
            mean_length=config.span_mean_length,
        )
        wanted.append((span, config.span_share))
    if config.sentence_share > 0:
        sentence = SentenceObjective(
            special=special,
            row_length=row_length,
            max_sentences=row_length,
            mask_ratio=config.sentence_mask_ratio,
            ends_sentence=vocabulary.ends_sentence,
        )
        wanted.append((_fit_sentences(sentence, survey), config.sentence_share))
    if config.document_share > 0:
        document = DocumentObjective(
            special=special,
            row_length=row_length,
            min_ratio=config.document_min_ratio,
            suffix_share=config.document_suffix_share,
        )
        wanted.append((document, config.document_share))
    return Mixture(
        objectives=tuple(objective for objective, _ in wanted),
        # Decimal, as the user wrote it: 0.3 is three tenths.
        shares=tuple(Fraction(str(share)) for _, share in wanted),
    )


def _fit_sentences(objective: SentenceObjective, survey: list[Window]) -> SentenceObjective:
    """Give the sentence objective room for as many blanks as this corpus's sentences need.

    As with spans, it is the smallest number with which the wanted share is covered on average:
    taking whole sentences overshoots, and the limit uses that up.
    """
    covered = np.zeros((len(survey), objective.row_length))  # by the first 1, 2, … sentences
    wanted = 0
    for number, window in enumerate(survey):
        rng = row_generator(0, Purpose.SURVEY, corpus=0, epoch=0, slot=number)
        lengths = objective.choose(window, rng).lengths
        covered[number, : len(lengths)] = lengths
        wanted += int(objective.mask_ratio * len(window.tokens))
    reached = covered.cumsum(axis=1).sum(axis=0)
    enough = int(reached.searchsorted(min(wanted, reached[-1]))) + 1
    return replace(objective, max_sentences=min(enough, max(1, objective.row_length // 8)))
