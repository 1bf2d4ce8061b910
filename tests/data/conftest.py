"""Corpora that several tests read, and what several tests prepare with."""

from pathlib import Path

import pytest

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.prepare import readers, shards
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from tests.data.corpora import make_documents, write_corpus, write_vocabulary


@pytest.fixture
def choice(tmp_path: Path) -> TokenizerSpec:
    return TokenizerSpec(TokenizerKind.bert, str(write_vocabulary(tmp_path)))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 kB, and a shard for every 8 kB."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 8000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora: middling, short and long documents."""
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder, "news", make_documents(300, mean_length=300))
    write_corpus(folder, "verse", make_documents(900, mean_length=50, seed=1))
    write_corpus(folder, "books", make_documents(24, mean_length=6000, seed=2))
    return folder
