"""Objectives that a configuration mixes, and their shares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count

import numpy as np
from numpy.typing import NDArray

from glm_dist.config.schema import CorruptionConfig, PretrainingTask
from glm_dist.data.objectives.base import Hiding, Objective, Window
from glm_dist.data.objectives.baselines import (
    CausalLM,
    MaskedLM,
    SpanCorruption,
    unilm_mixture,
)
from glm_dist.data.objectives.document import DocumentHiding
from glm_dist.data.objectives.glm import (
    MOST_SHORT_TEXTS,
    SHORTEST_TEXT,
    BlankInfilling,
    Variations,
)
from glm_dist.data.objectives.sentence import SentenceHiding
from glm_dist.data.objectives.span import SpanHiding, document_starts
from glm_dist.data.sampling.mixing import as_written
from glm_dist.data.sampling.randomness import Purpose, RowGenerators
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.errors import ConfigError

MOST_TEXT = 0.5
"""Share of a corpus's text, 0 to 1, that lies in sentences if its marks are known."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The facts about a tokenizer that row building needs."""

    special: SpecialTokens
    size: int
    ends_sentence: NDArray[np.bool_]
    """True for ids that end a sentence by the official marks. [v]"""
    ends_sentence_elsewhere: NDArray[np.bool_]
    """The same with the marks of other scripts. [v]"""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Objectives of one corpus with their shares of the rows.

    Two objectives may have one name: the plain one, which comes first, and its short form.
    """

    objectives: tuple[Objective, ...]
    shares: tuple[Fraction, ...]
    has_official_sentences: bool = True
    """True if sentences, where there are any, end with the official marks."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives, each once."""
        return tuple(dict.fromkeys(objective.name for objective in self.objectives))

    def named(self, name: str) -> Objective:
        """Find an objective.

        Raises:
            StopIteration: It is not in the mixture.
        """
        return next(objective for objective in self.objectives if objective.name == name)


@dataclass(frozen=True, eq=False)
class RowShape:
    """Bounds that rows must fit."""

    row_length: int
    max_position: int
    """Last row of the model's position tables."""


def make_mixture(
    config: CorruptionConfig,
    vocabulary: Vocabulary,
    shape: RowShape,
    *,
    survey: Sequence[Window],
) -> Mixture:
    """Build the objectives with a share above 0.

    Args:
        config: Task, shares, ratios and options.
        vocabulary: Special tokens and sentence ends.
        shape: Bounds that rows must fit.
        survey: Windows of the corpus, which tell the lengths of its sentences and documents.

    Raises:
        ConfigError: Options contradict each other, or need tokens that the vocabulary lacks.
    """
    special = vocabulary.special
    spans = SpanHiding.create(
        special,
        row_length=shape.row_length,
        mask_ratio=config.span_mask_ratio,
        mean_length=config.span_mean_length,
    )
    _check_sentinels(config, special, spans.max_blanks)
    parts: Sequence[tuple[Objective, Fraction]]
    match config.task:
        case PretrainingTask.blank_infilling:
            parts = _infilling(config, vocabulary, shape, spans, survey)
        case PretrainingTask.causal_lm:
            parts = [(CausalLM(special, shape.row_length), Fraction(1))]
        case PretrainingTask.span_corruption:
            shorter = SpanHiding.create(
                special,
                row_length=shape.row_length - 1,
                mask_ratio=config.span_mask_ratio,
                mean_length=config.span_mean_length,
            )
            parts = [(SpanCorruption(special, shape.row_length, shorter), Fraction(1))]
        case PretrainingTask.masked_lm | PretrainingTask.unilm:
            # A masked token costs no room, so all spans that the share needs may be drawn.
            every = replace(spans, max_blanks=shape.row_length)
            parts = [(MaskedLM(special, shape.row_length, every), Fraction(1))]
            if config.task is PretrainingTask.unilm:
                parts = unilm_mixture(special, shape.row_length, every)
    objectives = tuple(objective for objective, share in parts if share > 0)
    return Mixture(
        objectives=objectives,
        shares=tuple(share for _, share in parts if share > 0),
        has_official_sentences=all(
            hiding.ends_sentence is vocabulary.ends_sentence and not hiding.documents_end
            for objective in objectives
            if isinstance(objective, BlankInfilling)
            and isinstance(hiding := objective.hiding, SentenceHiding)
        ),
    )


def _infilling(
    config: CorruptionConfig,
    vocabulary: Vocabulary,
    shape: RowShape,
    spans: SpanHiding,
    survey: Sequence[Window],
) -> list[tuple[Objective, Fraction]]:
    """GLM's objectives, each plain and short, and single spans."""
    special, row_length = vocabulary.special, shape.row_length
    sentences = _find_sentence_ends(
        SentenceHiding(
            special,
            max_blanks=row_length,
            mask_ratio=config.sentence_mask_ratio,
            ends_sentence=vocabulary.ends_sentence,
        ),
        survey,
        vocabulary,
    )
    documents = DocumentHiding(
        special, min_ratio=config.document_min_ratio, suffix_share=config.document_suffix_share
    )
    if config.isolate_documents:
        most = _documents_in_windows(survey, special)
        documents = replace(documents, per_document=True, max_blanks=min(most, row_length // 16))
    hidings: list[tuple[Hiding, float]] = [
        (spans, config.span_share),
        (_fit_sentences(sentences, survey, row_length), config.sentence_share),
        (documents, config.document_share),
    ]
    variations = Variations(
        max_position=shape.max_position,
        block_mask_prob=config.block_mask_prob,
        keep_span_order=config.keep_span_order,
        random_positions=config.random_positions,
        sentinels=config.sentinels,
        no_block_positions=config.no_block_positions,
        isolate_documents=config.isolate_documents,
        restart_positions=config.restart_positions,
    )
    single, short = as_written(config.single_span_share), as_written(config.short_share)
    parts: list[tuple[Objective, Fraction]] = []
    for hiding, number in hidings:
        plain = BlankInfilling(hiding, special, row_length, variations)
        parts.append((plain, as_written(number) * (1 - single) * (1 - short)))
    for hiding, number in hidings:
        if isinstance(hiding, DocumentHiding):
            hiding = replace(hiding, per_document=True, max_blanks=MOST_SHORT_TEXTS)
        # Each short text is a sample of its own, whose positions begin at 0.
        restarting = replace(variations, restart_positions=True)
        brief = BlankInfilling(hiding, special, row_length, restarting, is_short=True)
        parts.append((brief, as_written(number) * (1 - single) * short))
    parts.append((BlankInfilling(spans.single(), special, row_length, variations), single))
    _check_short_rows(config, special, parts, row_length=row_length)
    return parts


def _find_sentence_ends(
    sentences: SentenceHiding, survey: Sequence[Window], vocabulary: Vocabulary
) -> SentenceHiding:
    """Choose what ends the sentences of a corpus.

    The official marks do, where most of the text lies in sentences by them. Other scripts have
    other marks, and text without marks, such as titles, has the ends of its documents.
    """
    if sentences.share_of_text(survey) >= MOST_TEXT:
        return sentences
    elsewhere = replace(sentences, ends_sentence=vocabulary.ends_sentence_elsewhere)
    if elsewhere.share_of_text(survey) >= MOST_TEXT:
        return elsewhere
    by_documents = replace(elsewhere, documents_end=True)
    candidates = (sentences, elsewhere, by_documents)
    return max(candidates, key=lambda each: each.share_of_text(survey))  # of equals the first


def _fit_sentences(
    sentences: SentenceHiding, survey: Sequence[Window], row_length: int
) -> SentenceHiding:
    """Give sentences room for as many blanks as this corpus needs.

    As with spans, it is the smallest number with which the wanted share is covered on average:
    taking whole sentences overshoots, and the limit uses that up.
    """
    covered = np.zeros((len(survey), row_length))  # by the first 1, 2, … sentences
    wanted = 0
    generators = RowGenerators(0, Purpose.SURVEY)
    for number, window in enumerate(survey):
        rng = generators.at(corpus=0, epoch=0, slot=number)
        lengths = sentences.choose(window, rng).blanks.lengths
        covered[number, : len(lengths)] = lengths
        wanted += int(sentences.mask_ratio * len(window.tokens))
    reached = covered.cumsum(axis=1).sum(axis=0)
    enough = int(reached.searchsorted(min(wanted, reached[-1]))) + 1
    return replace(sentences, max_blanks=min(enough, max(1, row_length // 8)))


def _documents_in_windows(survey: Sequence[Window], special: SpecialTokens) -> int:
    """Count the documents of a window, on average."""
    counts = [len(document_starts(window.tokens, special)) - 1 for window in survey]
    return max(1, round(float(np.mean(counts)))) if counts else 1


def _check_short_rows(
    config: CorruptionConfig,
    special: SpecialTokens,
    parts: Sequence[tuple[Objective, Fraction]],
    *,
    row_length: int,
) -> None:
    """A short row has room for one short text at least; official GLM draws none below 32."""
    rooms = [
        objective.window_length
        for objective, share in parts
        if share > 0 and isinstance(objective, BlankInfilling) and objective.is_short
    ]
    if min(rooms, default=SHORTEST_TEXT) >= SHORTEST_TEXT:
        return
    # Every short row keeps room for its cuts; documents take 2 tokens a text beside that, sentences
    # a quarter of the row at most.
    least = SHORTEST_TEXT + MOST_SHORT_TEXTS - 1
    for enough in count(max(least + 2 * MOST_SHORT_TEXTS, -(-4 * least // 3))):
        spans = SpanHiding.create(
            special,
            row_length=enough,
            mask_ratio=config.span_mask_ratio,
            mean_length=config.span_mean_length,
        )
        if enough - 2 * spans.max_blanks >= least:
            break
    raise ConfigError(
        f"Rows of batch.row_length={row_length} have room for {max(0, min(rooms))} tokens of text"
        f" beside their blanks; corruption.short_share={config.short_share} cuts texts of"
        f" {SHORTEST_TEXT} or more.\n"
        f"  Set batch.row_length={enough} or more, or corruption.short_share=0.",
        key="batch.row_length",
        value=row_length,
        fix=f"batch.row_length={enough}",
    )


def _check_sentinels(config: CorruptionConfig, special: SpecialTokens, most_blanks: int) -> None:
    needed = most_blanks if config.task is PretrainingTask.span_corruption else most_blanks - 1
    uses = config.sentinels or config.task is PretrainingTask.span_corruption
    if uses and special.sentinel_pairs < needed:
        raise ConfigError(
            f"A row may have {needed} blanks that need sentinels, but"
            f" tokenizer.sentinel_pairs={special.sentinel_pairs}.\n"
            f"  Set tokenizer.sentinel_pairs={needed} and raise tokenizer.vocab_size by"
            f" {2 * (needed - special.sentinel_pairs)}.",
            key="tokenizer.sentinel_pairs",
            value=special.sentinel_pairs,
            fix=f"tokenizer.sentinel_pairs={needed}",
        )
