"""Fixtures of the tests that prepare corpora."""

from pathlib import Path

import pytest

from glm_dist.config.schema import TokenizerKind
from glm_dist.data import prepare_journal, text_files
from glm_dist.data.tokenise import TokenizerChoice
from tests.data.corpora import write_vocabulary


@pytest.fixture
def choice(tmp_path: Path) -> TokenizerChoice:
    return TokenizerChoice(TokenizerKind.bert, str(write_vocabulary(tmp_path)))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 kB, hashes of 4 kB, and a journal after every block."""
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(prepare_journal, "HASH_BLOCK_BYTES", 4096)
    monkeypatch.setattr(prepare_journal, "JOURNAL_SECONDS", 0.0)
