"""Long texts are encoded in parts, to the ids of the whole."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.tokenizer import long_text
from glm_dist.data.tokenizer.long_text import encode_long
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.data.tokenizer.training import train_sentencepiece


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "PART_CHARACTERS", 1000)
    monkeypatch.setattr(long_text, "CONTEXT_CHARACTERS", 60)


def make_text(seed: int, *, ends: list[str]) -> str:
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdeé"), rng.integers(1, 8))) for _ in range(80)]
    return "".join(f"{rng.choice(words)}{rng.choice(ends)}" for _ in range(3000))


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize(
    "ends", [[" "], [" ", "\n"], [" ", " \n  ", "\n\n"], ["\t", "  "]], ids=repr
)
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_ids_are_those_of_the_whole(tmp_path: Path, model_type: str, ends: list[str]) -> None:
    text = make_text(0, ends=ends)
    train_sentencepiece([text], tmp_path / "t.model", vocab_size=320, model_type=model_type)
    spec = TokenizerSpec(TokenizerKind.sentencepiece, str(tmp_path / "t.model"))
    tokenizer, sizes = open_tokenizer(spec), []

    def encode(part: str) -> NDArray[np.int32]:
        sizes.append(len(part))
        return np.array(tokenizer.encode_document(part), np.int32)

    assert encode_long(encode, text).tolist() == tokenizer.encode_document(text)
    if ends != ["\t", "  "]:
        assert max(sizes) <= 1000 < len(text)


@pytest.mark.usefixtures("short_parts")
def test_a_text_that_can_be_cut_nowhere_is_encoded_whole() -> None:
    text = make_text(1, ends=[" ", "\n"])

    def one_token(part: str) -> NDArray[np.int32]:
        return np.array([len(part)], np.int32)

    assert encode_long(one_token, text).tolist() == [len(text)]
