"""Documents that occur twice, and passages of an evaluation set that a corpus holds.

Everything is compared by 64-bit hashes of token ids: among 10^9 documents a false match is expected
once in 37 corpora.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.corpus.indexed import BLOCK, IndexedTokens
from glm_dist.data.hashing import mix_bits, polynomials, shifted

PASSAGE_TOKENS = 32
"""Tokens in a row that two texts share by descent, not by chance; about 25 words of English."""


@dataclass(frozen=True)
class Contamination:
    """Documents of an evaluation set that a corpus holds."""

    documents: int
    """Documents of the evaluation set."""
    whole: int
    """Those that the corpus holds as documents."""
    passages: int
    """Those that share a passage with the corpus."""


def document_hashes(corpus: IndexedTokens) -> NDArray[np.uint64]:
    """Hash every document that is not empty, in order; 8 bytes of memory a document."""
    hashes = np.zeros(corpus.num_documents, np.uint64)
    lengths = np.zeros(corpus.num_documents, np.uint64)
    for begin in range(0, corpus.num_tokens, BLOCK):
        end = min(begin + BLOCK, corpus.num_tokens)
        first, last = corpus.document_at(begin), corpus.document_at(end - 1)
        offsets = corpus.document_offsets(first, last + 1)
        starts, stops = np.maximum(offsets[:-1], begin), np.minimum(offsets[1:], end)
        parts = polynomials(corpus.tokens[begin:end], starts - begin, stops - begin)
        parts[0] = shifted(parts[0], begin - min(begin, int(offsets[0])))
        hashes[first : last + 1] += parts
        lengths[first : last + 1] += (stops - starts).astype(np.uint64)
    mixed: NDArray[np.uint64] = mix_bits(hashes ^ mix_bits(lengths))[lengths > 0]
    return mixed


def count_copies(hashes: NDArray[np.uint64]) -> int:
    """Count the documents that equal an earlier one, given the hashes [n]."""
    return len(hashes) - len(np.unique(hashes))


def find_contamination(
    corpus: IndexedTokens, evaluation: IndexedTokens, *, passage: int = PASSAGE_TOKENS
) -> Contamination:
    """Look for the documents of an evaluation set in a corpus.

    Takes 16 bytes of memory for each token of the evaluation set.

    Args:
        corpus: Corpus that is trained on.
        evaluation: Documents that it should not hold.
        passage: Tokens in a row that count.
    """
    pairs = list(_passages(evaluation, passage))
    hashes = np.concatenate([found for found, _ in pairs] or [np.zeros(0, np.uint64)])
    documents = np.concatenate([numbers for _, numbers in pairs] or [np.zeros(0, np.int64)])
    order = hashes.argsort(kind="stable")
    hashes, documents = hashes[order], documents[order]
    is_shared = np.zeros(len(hashes), np.bool_)
    for found, _ in _passages(corpus, passage):
        begins = hashes.searchsorted(found, side="left")
        begins = begins[hashes[np.minimum(begins, len(hashes) - 1)] == found] if len(hashes) else []
        is_shared[begins] = True
    # Equal hashes lie side by side; the first of them was marked.
    is_first = np.ones(len(hashes), np.bool_)
    is_first[1:] = hashes[1:] != hashes[:-1]
    is_shared = is_shared[np.maximum.accumulate(np.where(is_first, np.arange(len(hashes)), 0))]
    whole = np.isin(document_hashes(evaluation), document_hashes(corpus))
    return Contamination(
        documents=evaluation.num_documents,
        whole=int(whole.sum()),
        passages=len(np.unique(documents[is_shared])),
    )


def _passages(
    corpus: IndexedTokens, passage: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield hashes of all passages inside documents, and their documents; both [n]."""
    for begin in range(0, corpus.num_tokens, BLOCK):
        end = min(begin + BLOCK + passage - 1, corpus.num_tokens)
        starts = np.arange(max(0, end - begin - passage + 1))
        if not len(starts):
            return
        first = corpus.document_at(begin)
        offsets = corpus.document_offsets(first, corpus.document_at(end - 1) + 1) - begin
        documents = offsets.searchsorted(starts, side="right") - 1
        starts = starts[offsets[documents + 1] >= starts + passage]
        hashes = polynomials(corpus.tokens[begin:end], starts, starts + passage)
        yield mix_bits(hashes), first + offsets.searchsorted(starts, side="right") - 1
