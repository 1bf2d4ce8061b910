"""Copies and shared passages, against a comparison of the token ids themselves."""

from pathlib import Path

import numpy as np
import pytest

from glm_dist.data import hashing
from glm_dist.data.corpus import duplicates
from glm_dist.data.corpus.duplicates import (
    Contamination,
    count_copies,
    document_hashes,
    find_contamination,
)
from glm_dist.data.corpus.indexed import IndexedTokens, open_indexed, write_documents

PASSAGE = 5


def random_documents(seed: int, count: int) -> list[list[int]]:
    """Short documents of few words, so that copies and shared passages occur by chance."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 3, rng.integers(0, 12)).tolist() for _ in range(count)]


def corpus_of(prefix: Path, documents: list[list[int]]) -> IndexedTokens:
    write_documents(prefix, documents, np.dtype(np.uint16))
    return open_indexed(prefix)


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_copies_and_passages_are_those_of_the_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", block)
    mine, others = random_documents(1, 150), random_documents(2, 60)
    corpus, evaluation = corpus_of(tmp_path / "a", mine), corpus_of(tmp_path / "b", others)

    kept = [tuple(document) for document in mine if document]
    assert count_copies(document_hashes(corpus)) == len(kept) - len(set(kept)) > 0
    passages = {tuple(d[i : i + PASSAGE]) for d in mine for i in range(len(d) - PASSAGE + 1)}
    shares = [
        any(tuple(d[i : i + PASSAGE]) in passages for i in range(len(d) - PASSAGE + 1))
        for d in others
    ]
    assert 0 < sum(shares) < len(others)
    assert find_contamination(corpus, evaluation, passage=PASSAGE) == Contamination(
        documents=60,
        whole=sum(tuple(document) in set(kept) for document in others if document),
        passages=sum(shares),
    )


def test_nothing_is_shared_with_documents_shorter_than_a_passage(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "a", [[1, 2], [3]])
    assert find_contamination(corpus, corpus) == Contamination(documents=2, whole=2, passages=0)


def test_hashes_of_near_texts_differ() -> None:
    tokens = np.array([0, 0, 0, 1, 0, 1, 0, 0])
    spans = [(i, j) for i in range(8) for j in range(i + 1, 9)]
    begins, ends = np.array(spans).T
    hashes = hashing.polynomials(tokens, begins, ends)
    texts = [tuple(tokens[i:j]) for i, j in spans]

    assert len(set(hashes.tolist())) == len(set(texts))
    assert len(set(zip(hashes.tolist(), texts, strict=True))) == len(set(texts))
