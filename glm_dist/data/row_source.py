"""Row index -> finished row, for training and validation, over all corpora of a run.

A training row is a pure function of (configuration, corpora, seed, index): no rank, no worker
count, no number of steps. Resuming is one integer, and every rank of a replica builds the same row
for itself.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from glm_dist.config.schema import DataConfig, RunConfig, TaskKind
from glm_dist.data.corpus.indexed import IndexedTokens
from glm_dist.data.corpus.open import open_corpus
from glm_dist.data.corpus.splits import TokenStream, split_documents
from glm_dist.data.identity import data_identity
from glm_dist.data.objectives.mixture import Mixture, RowShape, Vocabulary, make_mixture
from glm_dist.data.rows import Row
from glm_dist.data.sampling.epoch import CorpusRows, RowAddress, survey_windows
from glm_dist.data.sampling.held_out import HeldOutCorpus, HeldOutRows
from glm_dist.data.sampling.mixing import Blend, make_blend
from glm_dist.data.tokenizer.tokenizer import (
    MORE_END_MARKS,
    SENTENCE_END_MARKS,
    Tokenizer,
    load_tokenizer,
)
from glm_dist.errors import ConfigError


@dataclass(frozen=True)
class BlendShare:
    """One corpus's part in the blend."""

    corpus: str
    share: float
    """Share of the rows."""
    documents: int
    """Training documents."""
    tokens: int
    """Training tokens."""
    padding: float
    """Least share of its rows, 0 to 1, that is padding because the corpus is shorter than a row."""
    rows_per_round: int
    """Rows that hold each of its training tokens ``passes_per_round`` times."""
    passes_per_round: int
    """1 but for small corpora."""

    def epochs(self, rows: int) -> float:
        """Return the passes over the training tokens that rows of the corpus do."""
        return rows * self.passes_per_round / self.rows_per_round


class RowSource:
    """Every training and validation row of a run."""

    def __init__(
        self,
        corpora: list[CorpusRows],
        *,
        blend: Blend,
        data: DataConfig,
        validation: HeldOutRows,
        test: HeldOutRows,
        row_length: int,
        fingerprint: Mapping[str, object],
        opened: Mapping[str, IndexedTokens],
    ) -> None:
        """Join corpora.

        Args:
            corpora: At least one.
            blend: Their turns.
            data: Which rows are skipped.
            validation: Rows to watch a run with.
            test: Rows to judge a finished model with.
            row_length: Tokens of a row.
            fingerprint: Identity of the data, for resume.
            opened: Files of the corpora, by name.
        """
        self._corpora = corpora
        self._blend = blend
        self._data = data
        self._fingerprint = dict(fingerprint)
        self.validation = validation
        self.test = test
        self.row_length = row_length
        self.opened = opened

    def passing_over(self, rows: Sequence[str]) -> "RowSource":
        """Return the same rows without some ranges, as first-last; later rows move up."""
        source = copy.copy(self)
        source._data = self._data.passing_over(rows)
        return source

    def index(self, number: int) -> int:
        """Return the index of a training row, which counts skipped rows as well."""
        return self._data.row_index(number)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, as in metrics."""
        return self._corpora[0].mixture.names

    def rows(self, number: int) -> tuple[Row]:
        """Build the rows of a training item, which is one row; see ``row``."""
        return (self.row(number),)

    def row(self, number: int) -> Row:
        """Build a training row.

        Args:
            number: 0, 1, 2, … without end; step t of batch size G reads t*G … t*G + G - 1.

        Returns:
            The row; its index counts skipped rows as well.

        Raises:
            DataError: The corpus holds ids the tokenizer does not know.
        """
        index = self._data.row_index(number)
        corpus, rank = self._locate(index)
        return replace(corpus.row(rank), index=index, corpus=corpus.name)

    def address(self, number: int) -> tuple[str, RowAddress]:
        """Return the corpus that a training row comes from, and the place in it."""
        corpus, rank = self._locate(self._data.row_index(number))
        return corpus.name, corpus.locate(rank)

    def documents(self, number: int) -> tuple[str, list[int]]:
        """Return the corpus and the numbers of the documents that a training row is made of."""
        corpus, rank = self._locate(self._data.row_index(number))
        address = corpus.locate(rank)
        return corpus.name, corpus.training.documents(address.position, address.length)

    def rows_before(self, number: int) -> dict[str, int]:
        """Count the rows of each corpus that are read before a training row."""
        counts = self._before(number, self._blend.counts_before)
        return {name: int(count) for name, count in counts.items()}

    def wanted_rows_before(self, number: int) -> dict[str, float]:
        """Give the rows of each corpus before a training row by the weights as they are written."""
        wanted = self._before(number, self._blend.wanted_before)
        return {name: float(rows) for name, rows in wanted.items()}

    def epochs_before(self, number: int) -> dict[str, float]:
        """Give the passes over each corpus's training tokens that rows before a row have done."""
        rows = self.rows_before(number)
        return {part.corpus: part.epochs(rows[part.corpus]) for part in self.blend()}

    def _before(
        self, number: int, count: Callable[[int], Sequence[int | Fraction]]
    ) -> dict[str, int | Fraction]:
        """Count by index, less what was skipped."""
        index = self._data.row_index(number)
        totals = list(count(index))
        for rows in self._data.skipped:
            if rows.start < index:
                ends = zip(totals, count(rows.start), count(rows.stop), strict=True)
                totals = [total - (end - begin) for total, begin, end in ends]
        return {corpus.name: n for corpus, n in zip(self._corpora, totals, strict=True)}

    def blend(self, index: int = 0) -> list[BlendShare]:
        """Describe the blend around a training row."""
        return [
            BlendShare(
                corpus=corpus.name,
                share=float(share),
                documents=corpus.training.num_documents,
                tokens=corpus.training.num_tokens,
                padding=corpus.padding,
                rows_per_round=corpus.rows_per_round,
                passes_per_round=corpus.passes_per_round,
            )
            for corpus, share in zip(self._corpora, self._blend.shares(index), strict=True)
        ]

    def fingerprint(self) -> dict[str, object]:
        """Identify the data: what must not change between a checkpoint and its continuation."""
        return dict(self._fingerprint)

    def _locate(self, index: int) -> tuple[CorpusRows, int]:
        number, rank = self._blend.locate(index)
        return self._corpora[number], rank


def open_row_source(config: RunConfig, tokenizer: Tokenizer | None = None) -> RowSource:
    """Open the corpora and the tokenizer of a run.

    Reads headers and a few windows, so the time does not depend on the size of the corpora.

    Args:
        config: Checked configuration.
        tokenizer: The run's, if it is loaded already.

    Raises:
        DataError: A file is missing, damaged, or made with another tokenizer.
        ConfigError: Options of the corruption contradict the tokenizer, or the run has a task.
    """
    _refuse_task(config)
    data, seed = config.data, config.run.seed
    tokenizer = tokenizer or load_tokenizer(config.tokenizer)
    vocabulary = vocabulary_of(tokenizer)
    corpora: list[CorpusRows] = []
    validation: list[HeldOutCorpus] = []
    test: list[HeldOutCorpus] = []
    opened = {}
    for name, corpus in data.corpora.items():
        opened[name] = indexed = open_corpus(name, corpus.prefix, tokenizer=tokenizer)
        split = split_documents(
            indexed.num_documents,
            validation_share=data.validation_share,
            test_share=data.test_share,
            corpus=name,
        )
        training = TokenStream(indexed, split.training, name=name)
        mixture = _mixture(config, training, vocabulary)
        corpora.append(CorpusRows(training, mixture=mixture, vocabulary=vocabulary, seed=seed))
        for part, ranges in ((validation, split.validation), (test, split.test)):
            held_out = TokenStream(indexed, ranges, name=name)
            part.append(HeldOutCorpus(held_out, mixture, vocabulary))
    for name, prefix in data.validation_corpora.items():
        indexed = open_corpus(name, prefix, tokenizer=tokenizer)
        whole = TokenStream(indexed, ((0, indexed.num_documents),), name=name)
        validation.append(HeldOutCorpus(whole, _mixture(config, whole, vocabulary), vocabulary))
    return RowSource(
        corpora,
        blend=make_blend(data, [rows.training.num_tokens for rows in corpora]),
        data=data,
        validation=HeldOutRows(validation),
        test=HeldOutRows(test),
        row_length=config.batch.row_length,
        fingerprint=data_identity(
            config,
            tokenizer,
            opened,
            needs_newest_rule=any(
                rows.passes_per_round > 1 or not rows.mixture.has_official_sentences
                for rows in corpora
            ),
        ),
        opened=opened,
    )


def _refuse_task(config: RunConfig) -> None:
    """Refuse a run that learns from examples, whose rows come from other files.

    Raises:
        ConfigError: The configuration has a task.
    """
    if config.task.kind is TaskKind.none:
        return
    raise ConfigError(
        f"task.kind={config.task.kind.name} learns from examples, so this run has no rows of"
        " corpora.\n"
        "  Name a run of pretraining, or set task=none.",
        key="task.kind",
        value=config.task.kind.name,
        fix="task=none",
    )


def _mixture(config: RunConfig, stream: TokenStream, vocabulary: Vocabulary) -> Mixture:
    """Make the objectives of one corpus, whose sentences decide how many blanks a row has."""
    shape = RowShape(config.batch.row_length, config.model.max_position_embeddings)
    survey = survey_windows(stream, vocabulary, row_length=shape.row_length)
    return make_mixture(config.corruption, vocabulary, shape, survey=survey)


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Take from a tokenizer what row building needs."""
    official, elsewhere = tokenizer.sentence_ends(SENTENCE_END_MARKS, MORE_END_MARKS)
    return Vocabulary(
        special=tokenizer.special,
        size=tokenizer.vocab_size,
        ends_sentence=official,
        ends_sentence_elsewhere=elsewhere,
    )
