"""Row index -> finished row, for training and validation, over all corpora of a run.

A training row is a pure function of (configuration, corpora, seed, index): no rank, no worker
count, no number of steps. Resuming is one integer, and every rank of a replica builds the same row
for itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from glm_dist.config.schema import RunConfig
from glm_dist.data.corpus.open import open_corpus
from glm_dist.data.corpus.splits import TokenStream, split_documents
from glm_dist.data.identity import data_identity
from glm_dist.data.objectives.mixture import Mixture, RowShape, Vocabulary, make_mixture
from glm_dist.data.rows import Row
from glm_dist.data.sampling.epoch import CorpusRows, RowAddress, survey_windows
from glm_dist.data.sampling.held_out import HeldOutCorpus, HeldOutRows
from glm_dist.data.sampling.mixing import Blend, make_blend
from glm_dist.data.tokenizer.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class BlendShare:
    """One corpus's part in the blend."""

    corpus: str
    share: float
    """Share of the rows."""
    tokens: int
    """Training tokens."""
    rows_per_epoch: int


class RowSource:
    """Every training and validation row of a run."""

    def __init__(
        self,
        corpora: list[CorpusRows],
        *,
        blend: Blend,
        validation: HeldOutRows,
        test: HeldOutRows,
        row_length: int,
        fingerprint: Mapping[str, object],
    ) -> None:
        """Join corpora.

        Args:
            corpora: At least one.
            blend: Their turns.
            validation: Rows to watch a run with.
            test: Rows to judge a finished model with.
            row_length: Tokens of a row.
            fingerprint: Identity of the data, for resume.
        """
        self._corpora = corpora
        self._blend = blend
        self._fingerprint = dict(fingerprint)
        self.validation = validation
        self.test = test
        self.row_length = row_length

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, as in metrics."""
        return self._corpora[0].mixture.names

    def row(self, index: int) -> Row:
        """Build a training row.

        Args:
            index: 0, 1, 2, … without end; step t of batch size G reads t*G … t*G + G - 1.

        Raises:
            DataError: The corpus holds ids the tokenizer does not know.
        """
        corpus, number = self._locate(index)
        return replace(corpus.row(number), index=index, corpus=corpus.name)

    def address(self, index: int) -> tuple[str, RowAddress]:
        """Tell where a training row comes from: the corpus's name and the place in it."""
        corpus, number = self._locate(index)
        return corpus.name, corpus.locate(number)

    def rows_before(self, index: int) -> dict[str, int]:
        """Count the rows of each corpus among the training rows before an index."""
        counts = self._blend.counts_before(index)
        return {corpus.name: count for corpus, count in zip(self._corpora, counts, strict=True)}

    def wanted_rows_before(self, index: int) -> dict[str, float]:
        """Give the rows of each corpus before an index by the weights as they are written."""
        wanted = self._blend.wanted_before(index)
        return {
            corpus.name: float(rows) for corpus, rows in zip(self._corpora, wanted, strict=True)
        }

    def blend(self, index: int = 0) -> list[BlendShare]:
        """Describe the blend around a training row."""
        return [
            BlendShare(
                corpus=corpus.name,
                share=float(share),
                tokens=corpus.training.num_tokens,
                rows_per_epoch=corpus.rows_per_epoch,
            )
            for corpus, share in zip(self._corpora, self._blend.shares(index), strict=True)
        ]

    def fingerprint(self) -> dict[str, object]:
        """Identify the data: what must not change between a checkpoint and its continuation."""
        return dict(self._fingerprint)

    def _locate(self, index: int) -> tuple[CorpusRows, int]:
        number, rank = self._blend.locate(index)
        return self._corpora[number], rank


def open_row_source(config: RunConfig) -> RowSource:
    """Open the corpora and the tokenizer of a run.

    Reads headers and a few windows, so the time does not depend on the size of the corpora.

    Raises:
        DataError: A file is missing, damaged, or made with another tokenizer.
        ConfigError: Options of the corruption contradict the tokenizer.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    vocabulary = vocabulary_of(tokenizer)
    shape = RowShape(config.batch.row_length, config.model.max_position_embeddings)
    corpora: list[CorpusRows] = []
    validation: list[HeldOutCorpus] = []
    test: list[HeldOutCorpus] = []
    opened = {}

    def mixture_of(stream: TokenStream) -> Mixture:
        survey = survey_windows(stream, vocabulary, row_length=shape.row_length)
        return make_mixture(config.corruption, vocabulary, shape, survey=survey)

    for name, corpus in config.data.corpora.items():
        indexed = open_corpus(name, corpus.prefix, tokenizer=tokenizer)
        split = split_documents(
            indexed.num_documents,
            validation_share=config.data.validation_share,
            test_share=config.data.test_share,
            corpus=name,
        )
        training = TokenStream(indexed, split.training, name=name)
        mixture = mixture_of(training)
        rows = CorpusRows(
            name,
            training=training,
            mixture=mixture,
            vocabulary=vocabulary,
            seed=config.run.seed,
        )
        corpora.append(rows)
        for part, ranges in ((validation, split.validation), (test, split.test)):
            held_out = TokenStream(indexed, ranges, name=name)
            part.append(HeldOutCorpus(held_out, mixture, vocabulary))
        opened[name] = indexed
    for name, prefix in config.data.validation_corpora.items():
        indexed = open_corpus(name, prefix, tokenizer=tokenizer)
        whole = TokenStream(indexed, ((0, indexed.num_documents),), name=name)
        validation.append(HeldOutCorpus(whole, mixture_of(whole), vocabulary))
    return RowSource(
        corpora,
        blend=make_blend(config.data, [rows.training.num_tokens for rows in corpora]),
        validation=HeldOutRows(validation),
        test=HeldOutRows(test),
        row_length=shape.row_length,
        fingerprint=data_identity(config, tokenizer, opened),
    )


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Take from a tokenizer what row building needs."""
    return Vocabulary(
        special=tokenizer.special,
        size=tokenizer.vocab_size,
        ends_sentence=tokenizer.sentence_ends(),
    )
