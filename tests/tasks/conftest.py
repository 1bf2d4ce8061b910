"""Fixtures of the tests of tasks."""

import pytest

from glm_dist.config.schema import TokenizerConfig, TokenizerKind
from glm_dist.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.data.corpora import VOCAB_SIZE, write_vocabulary


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Words w6 … w999 and GLM's special tokens."""
    folder = tmp_path_factory.mktemp("vocabulary")
    kind, path = TokenizerKind.bert, str(write_vocabulary(folder))
    return load_tokenizer(TokenizerConfig(kind, path, vocab_size=VOCAB_SIZE, task_masks=True))
