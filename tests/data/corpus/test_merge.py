"""Joined corpora hold the documents of all, in order."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.corpus.indexed import bin_path, idx_path, open_indexed, write_documents
from glm_dist.data.corpus.manifest import read_manifest
from glm_dist.data.corpus.merge import merge_corpora
from glm_dist.data.corpus.validate import validate_corpus
from glm_dist.data.prepare.prepare import prepare
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from glm_dist.errors import DataError
from tests.data.corpora import write_vocabulary


def prepared(folder: Path, name: str, words: list[str]) -> Path:
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        write_vocabulary(folder)
    (folder / f"{name}.txt").write_text("\n".join(words))
    choice = TokenizerSpec(TokenizerKind.bert, str(vocabulary))
    prepare([str(folder / f"{name}.txt")], folder / name, tokenizer=choice, options=TextOptions())
    return folder / name


def test_merging_equals_preparing_together(tmp_path: Path) -> None:
    first = prepared(tmp_path, "a", ["w10 w11", "w12"])
    second = prepared(tmp_path, "b", ["w13", "w14 w15 w16"])
    together = prepared(tmp_path, "both", ["w10 w11", "w12", "w13", "w14 w15 w16"])
    merge_corpora([str(first), str(second)], tmp_path / "merged")

    for path_of in (bin_path, idx_path):
        assert path_of(tmp_path / "merged").read_bytes() == path_of(together).read_bytes()
    assert validate_corpus(tmp_path / "merged").is_sound
    manifest = read_manifest(tmp_path / "merged")
    assert manifest is not None
    assert (manifest.documents, len(manifest.sources)) == (4, 2)


def test_a_corpus_without_manifest_is_merged_without_one(tmp_path: Path) -> None:
    first = prepared(tmp_path, "a", ["w10"])
    write_documents(tmp_path / "m", [[1, 10, 0], [1, 11, 0]], np.dtype(np.uint16))

    assert merge_corpora([str(first), str(tmp_path / "m")], tmp_path / "merged") is None
    assert open_indexed(tmp_path / "merged").num_documents == 3
    assert sorted(path.name for path in tmp_path.glob("merged*")) == ["merged.bin", "merged.idx"]


def test_corpora_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    first = prepared(tmp_path, "a", ["w10"])
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "vocab.txt"
    shutil.copy(tmp_path / "vocab.txt", other)
    other.write_text(other.read_text() + "\nmore")
    second = prepared(tmp_path / "other", "b", ["w10"])

    with pytest.raises(DataError, match="one tokenizer"):
        merge_corpora([str(first), str(second)], tmp_path / "merged")


def test_an_existing_output_is_left_alone(tmp_path: Path) -> None:
    first = prepared(tmp_path, "a", ["w10"])

    with pytest.raises(DataError, match="exists already"):
        merge_corpora([str(first)], first)
