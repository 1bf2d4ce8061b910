"""Every document in one split, held-out ones spread over the corpus."""

from pathlib import Path

import numpy as np
import pytest

from glm_dist.data.corpus.indexed import open_indexed, write_documents
from glm_dist.data.corpus.splits import TokenStream, split_documents
from glm_dist.errors import DataError


def documents(ranges: tuple[tuple[int, int], ...]) -> list[int]:
    return [number for first, last in ranges for number in range(first, last)]


@pytest.mark.parametrize("count", [3, 4, 17, 63, 64, 65, 1000, 12_345])
@pytest.mark.parametrize("shares", [(0.05, 0.001), (0.3, 0.3), (0.0, 0.0), (0.01, 0.0)])
def test_every_document_is_in_exactly_one_split(count: int, shares: tuple[float, float]) -> None:
    split = split_documents(count, validation_share=shares[0], test_share=shares[1])
    parts = [documents(part) for part in (split.training, split.validation, split.test)]

    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(count))
    for part, share in zip(parts[1:], shares, strict=True):
        # The nearest number of documents, but at least one where a share is wanted.
        assert len(part) == (max(1, round(count * share)) if share else 0)


def test_held_out_documents_are_spread_over_the_corpus() -> None:
    split = split_documents(100_000, validation_share=0.05, test_share=0.001)
    for part in (split.validation, split.test):
        numbers = np.array(documents(part))
        assert abs(numbers.mean() - 50_000) < 2_000
        # 100 test documents in 64 strata of 1562 never skip two strata in a row.
        assert np.diff(numbers).max() < 2 * 1_563


def test_a_billion_documents_are_a_few_ranges() -> None:
    split = split_documents(10**9, validation_share=0.05, test_share=0.001)

    assert len(split.training) == len(split.validation) == len(split.test) == 64
    assert sum(last - first for first, last in split.validation) == 50_000_000


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 document\(s\)"):
        split_documents(2, validation_share=0.05, test_share=0.001, corpus="tiny")


def test_a_stream_joins_its_ranges_to_a_ring(tmp_path: Path) -> None:
    texts = [[10, 11], [20, 21, 22], [30], [40, 41]]
    write_documents(tmp_path / "c", texts, np.dtype(np.uint16))
    stream = TokenStream(open_indexed(tmp_path / "c"), ((0, 1), (2, 4)))

    assert stream.num_tokens == 5
    assert stream.num_documents == 3
    assert stream.read(0, 5).tolist() == [10, 11, 30, 40, 41]
    assert stream.read(1, 3).tolist() == [11, 30, 40]
    assert stream.read(4, 4).tolist() == [41, 10, 11, 30]
