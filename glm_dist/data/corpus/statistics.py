"""Contents of a corpus, and the part of it that a run would read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glm_dist.data.corpus.indexed import BLOCK, IndexedTokens
from glm_dist.data.row_source import RowSource

ROWS_COUNTED = 200_000
"""Rows whose tokens are counted one by one; a few seconds' work."""

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class CorpusStatistics:
    """Sizes of one corpus."""

    documents: int
    tokens: int
    bytes_per_token: int
    length_quantiles: tuple[int, ...]
    """Tokens of documents at ``QUANTILES``."""


def corpus_statistics(corpus: IndexedTokens) -> CorpusStatistics:
    """Measure a corpus; of more than a million documents, every n-th is measured.

    Args:
        corpus: Mapped corpus.
    """
    step = max(1, corpus.num_documents // BLOCK)
    offsets = [corpus.document_offset(n) for n in range(0, corpus.num_documents, step)]
    ends = [corpus.document_offset(n + 1) for n in range(0, corpus.num_documents, step)]
    lengths = np.array(ends) - np.array(offsets)
    return CorpusStatistics(
        documents=corpus.num_documents,
        tokens=corpus.num_tokens,
        bytes_per_token=corpus.tokens.dtype.itemsize,
        length_quantiles=tuple(int(q) for q in np.quantile(lengths, QUANTILES)),
    )


@dataclass(frozen=True)
class BlendRecord:
    """Part of one corpus that a run reads."""

    corpus: str
    wanted_rows: float
    """Rows by the shares of the blend, over its stages."""
    rows: int
    tokens: int
    """Text tokens read, without the [CLS] put in front of windows; an average beyond
    ``ROWS_COUNTED`` rows."""
    epochs: float
    """Passes over the corpus's training tokens."""


def blend_records(source: RowSource, num_rows: int) -> list[BlendRecord]:
    """Count what the first rows of a run read, without building them.

    Args:
        source: Rows of the run.
        num_rows: Training rows.
    """
    rows, wanted = source.rows_before(num_rows), source.wanted_rows_before(num_rows)
    exact: Counter[str] = Counter()
    if num_rows <= ROWS_COUNTED:
        for index in range(num_rows):
            corpus, address = source.address(index)
            exact[corpus] += address.length
    records = []
    for part in source.blend():
        average = round(part.epochs(rows[part.corpus]) * part.tokens)
        tokens = exact[part.corpus] if num_rows <= ROWS_COUNTED else average
        epochs = tokens / part.tokens
        records.append(
            BlendRecord(part.corpus, wanted[part.corpus], rows[part.corpus], tokens, epochs)
        )
    return records


@dataclass(frozen=True)
class RowStatistics:
    """Averages over the rows of one objective."""

    objective: str
    rows: int
    share: float
    """Share of all rows."""
    real: float
    """Share of tokens that are not padding."""
    predicted: float
    """Share of tokens that are predicted."""
    blanks: float
    """Blanks in a row, on average."""


def row_statistics(source: RowSource, indices: Sequence[int]) -> list[RowStatistics]:
    """Build rows and measure them.

    Args:
        source: Rows of the run.
        indices: Training rows to build.
    """
    rows = [source.row(index) for index in indices]
    found = []
    for objective in source.objectives:
        own = [row for row in rows if row.objective == objective]
        size = max(1, len(own)) * source.row_length
        found.append(
            RowStatistics(
                objective=objective,
                rows=len(own),
                share=len(own) / len(rows),
                real=sum(row.num_real_tokens for row in own) / size,
                predicted=sum(int(row.loss_mask.sum()) for row in own) / size,
                blanks=sum(int((row.block_positions == 1).sum()) for row in own) / max(1, len(own)),
            )
        )
    return found
