"""Token files: exchange with megatron-core in both directions, and every kind of damage."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from glm_dist.data.corpus.indexed import (
    bin_path,
    idx_path,
    open_indexed,
    token_type_for,
    write_documents,
)
from glm_dist.errors import DataError

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_documents(tmp_path / "corpus", DOCUMENTS, np.dtype(np.uint16))
    return tmp_path / "corpus"


def test_documents_are_read_back(prefix: Path) -> None:
    corpus = open_indexed(prefix)

    assert corpus.num_tokens == 8
    assert corpus.num_documents == 3
    assert [corpus.document(i).tolist() for i in range(3)] == DOCUMENTS
    assert [corpus.document_offset(i) for i in range(4)] == [0, 3, 4, 8]


def test_megatron_reads_what_we_write(prefix: Path) -> None:
    dataset = IndexedDataset(str(prefix))

    assert [sequence.tolist() for sequence in dataset] == DOCUMENTS
    assert dataset.document_indices.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_we_read_what_megatron_writes(tmp_path: Path, dtype: type[np.integer]) -> None:
    # Two documents: one of two sequences, one of one.
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=dtype)
    builder.add_document(torch.tensor([1, 2, 3, 4, 5]), [2, 3])
    builder.add_document(torch.tensor([6, 7]), [2])
    builder.finalize(str(tmp_path / "m.idx"))
    corpus = open_indexed(tmp_path / "m")

    assert corpus.num_documents == 2
    assert corpus.document(0).tolist() == [1, 2, 3, 4, 5]
    assert corpus.document(1).tolist() == [6, 7]


def test_bytes_equal_those_of_megatron(tmp_path: Path, prefix: Path) -> None:
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.uint16)
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "m.idx"))

    assert bin_path(prefix).read_bytes() == (tmp_path / "m.bin").read_bytes()
    assert idx_path(prefix).read_bytes() == (tmp_path / "m.idx").read_bytes()


def test_small_vocabularies_take_two_bytes_a_token() -> None:
    assert token_type_for(50_304) == np.uint16
    assert token_type_for(65_500) == np.int32


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_is_named(prefix: Path, suffix: str) -> None:
    Path(f"{prefix}{suffix}").unlink()

    with pytest.raises(DataError, match=rf"corpus\{suffix} is missing"):
        open_indexed(prefix)


def test_a_token_file_cut_short_names_both_sizes(prefix: Path) -> None:
    bin_path(prefix).write_bytes(bin_path(prefix).read_bytes()[:9])

    # 8 tokens of 2 bytes; byte 9 lies in the third sequence, which begins at byte 8.
    with pytest.raises(DataError, match=r"9 bytes, which end inside sequence 2, not the 16 of"):
        open_indexed(prefix)


def test_a_token_file_grown_longer_is_refused(prefix: Path) -> None:
    with bin_path(prefix).open("ab") as stream:
        stream.write(b"\0\0")

    with pytest.raises(DataError, match="longer than its index"):
        open_indexed(prefix)


def test_an_empty_token_file_is_refused(prefix: Path) -> None:
    bin_path(prefix).write_bytes(b"")

    with pytest.raises(DataError, match="is empty"):
        open_indexed(prefix)


@pytest.mark.parametrize("size", [0, 5, 20, 33, 40, 80])
def test_an_index_cut_short_is_refused(prefix: Path, size: int) -> None:
    idx_path(prefix).write_bytes(idx_path(prefix).read_bytes()[:size])

    with pytest.raises(DataError, match=r"corpus\.idx"):
        open_indexed(prefix)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(0, 0, "begins with"), (9, 2, "version 2"), (17, 7, "token type 7"), (18, 4, "bytes")],
    ids=["magic", "version", "float-tokens", "count"],
)
def test_a_wrong_header_is_refused(prefix: Path, place: int, value: int, message: str) -> None:
    data = bytearray(idx_path(prefix).read_bytes())
    data[place] = value
    idx_path(prefix).write_bytes(bytes(data))

    with pytest.raises(DataError, match=message):
        open_indexed(prefix)


def test_a_corpus_survives_the_way_into_a_worker(prefix: Path) -> None:
    corpus = pickle.loads(pickle.dumps(open_indexed(prefix)))
    assert corpus.document(2).tolist() == [9, 10, 11, 12]
