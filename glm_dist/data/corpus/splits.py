"""Training, validation and test documents of a corpus, by arithmetic on document numbers.

The corpus is cut into up to 64 equal strata of consecutive documents, and the last documents of
each stratum are held out. So a held-out set is spread over the whole corpus (files are often sorted
by source or date), every split is a handful of contiguous pieces of the token file, and nothing has
to be stored or scanned, whatever the number of documents.
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.corpus.indexed import IndexedTokens
from glm_dist.errors import DataError

MOST_STRATA = 64


@dataclass(frozen=True)
class Split:
    """Ranges of document numbers, first to one past the last, in order."""

    training: tuple[tuple[int, int], ...]
    validation: tuple[tuple[int, int], ...]
    test: tuple[tuple[int, int], ...]


def split_documents(
    num_documents: int, *, validation_share: float, test_share: float, corpus: str = ""
) -> Split:
    """Assign every document to one split.

    Args:
        num_documents: Documents in the corpus.
        validation_share: Share held out for validation; above 0 it gets at least one document.
        test_share: Share held out for testing; above 0 it gets at least one document.
        corpus: Name for the error message.

    Raises:
        DataError: There are too few documents to hold any out.
    """
    held = [_held_out(num_documents, share) for share in (validation_share, test_share)]
    num_training = num_documents - sum(held)
    if num_training < 1:
        raise DataError(
            f"Nothing is left to train on: data.corpora.{corpus} has {num_documents} document(s),"
            f" of which {held[0]} are held out for validation and {held[1]} for testing.\n"
            "  Cut the text into more documents, or set data.validation_share=0 data.test_share=0"
            " evaluation=none.",
            key=f"data.corpora.{corpus}",
            value=num_documents,
            fix="data.validation_share=0 data.test_share=0 evaluation=none",
        )
    strata = max(1, min(MOST_STRATA, num_training // 4))
    parts: tuple[list[tuple[int, int]], ...] = ([], [], [])
    for stratum in range(strata):
        begin, end = (edge * num_documents // strata for edge in (stratum, stratum + 1))
        sizes = [(stratum + 1) * h // strata - stratum * h // strata for h in held]
        edges = [begin, end - sum(sizes), end - sizes[1], end]
        for part, first, last in zip(parts, edges, edges[1:], strict=False):
            if last > first:
                part.append((first, last))
    return Split(*(tuple(part) for part in parts))


def _held_out(num_documents: int, share: float) -> int:
    return max(1, round(num_documents * share)) if share > 0 else 0


class TokenStream:
    """The tokens of some document ranges, end to end, closed to a ring."""

    def __init__(
        self, corpus: IndexedTokens, ranges: tuple[tuple[int, int], ...], *, name: str = ""
    ) -> None:
        """Find where the ranges lie.

        Args:
            corpus: Mapped token file.
            ranges: Ranges of document numbers.
            name: Name of the corpus in the configuration.
        """
        self.name = name
        self._corpus = corpus
        self._tokens = corpus.tokens
        self._begins = [corpus.document_offset(first) for first, _ in ranges]
        ends = [corpus.document_offset(last) for _, last in ranges]
        sizes = [end - begin for begin, end in zip(self._begins, ends, strict=True)]
        self._before = [0]
        for size in sizes:
            self._before.append(self._before[-1] + size)
        self.num_documents = sum(last - first for first, last in ranges)

    @property
    def num_tokens(self) -> int:
        """Tokens on the ring."""
        return self._before[-1]

    def read(self, position: int, length: int) -> NDArray[np.int64]:
        """Copy tokens, going on at the beginning after the last one.

        Args:
            position: First token, 0 to ``num_tokens`` - 1.
            length: Tokens to read, at most ``num_tokens``.
        """
        out = np.empty(length, np.int64)
        done = 0
        while done < length:
            piece = bisect_right(self._before, position) - 1
            count = min(length - done, self._before[piece + 1] - position)
            begin = self._begins[piece] + position - self._before[piece]
            out[done : done + count] = self._tokens[begin : begin + count]
            done += count
            position = (position + count) % self.num_tokens
        return out

    def documents(self, position: int, length: int) -> list[int]:
        """List the documents that a stretch of the ring touches, in the order of the ring.

        Args:
            position: First token, 0 to ``num_tokens`` - 1.
            length: Tokens, at most ``num_tokens``.
        """
        found: list[int] = []
        done = 0
        while done < length:
            piece = bisect_right(self._before, position) - 1
            count = min(length - done, self._before[piece + 1] - position)
            begin = self._begins[piece] + position - self._before[piece]
            first = self._corpus.document_at(begin)
            found += range(first, self._corpus.document_at(begin + count - 1) + 1)
            done += count
            position = (position + count) % self.num_tokens
        return found
