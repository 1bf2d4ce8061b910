"""The official code's own token folders."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.corpus.indexed import open_indexed
from glm_dist.data.corpus.validate import validate_corpus
from glm_dist.data.prepare.official_lazy import import_lazy
from glm_dist.data.tokenizer.tokenizer import Tokenizer, TokenizerSpec, open_tokenizer
from glm_dist.errors import DataError
from tests.data.corpora import CLS, EOS, write_vocabulary

PROMPTS = [[], [20, 21], []]
TEXTS = [[10, 11, 12], [13], [14, 15]]


def write_lazy(folder: Path, prompts: list[list[int]], texts: list[list[int]]) -> Path:
    folder.mkdir()
    for name, parts in (("prompt", prompts), ("text", texts)):
        ids = np.array([number for part in parts for number in part], "<i4")
        (folder / name).write_bytes(ids.tobytes())
        with (folder / f"{name}.len.pkl").open("wb") as stream:
            pickle.dump([len(part) for part in parts], stream)
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return open_tokenizer(TokenizerSpec(TokenizerKind.bert, str(write_vocabulary(tmp_path))))


def test_prompt_and_text_become_one_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = write_lazy(tmp_path / "a.lazy", PROMPTS, TEXTS)
    manifest = import_lazy(folder, tmp_path / "a", tokenizer)
    corpus = open_indexed(tmp_path / "a")

    assert [corpus.document(i).tolist() for i in range(3)] == [
        [CLS, 10, 11, 12, EOS],
        [CLS, 20, 21, 13, EOS],
        [CLS, 14, 15, EOS],
    ]
    assert manifest.tokens == 14
    assert validate_corpus(tmp_path / "a").is_sound


def test_a_folder_cut_short_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = write_lazy(tmp_path / "a.lazy", PROMPTS, TEXTS)
    (folder / "text").write_bytes((folder / "text").read_bytes()[:-4])

    with pytest.raises(DataError, match=r"5 tokens, but .* adds up to 6"):
        import_lazy(folder, tmp_path / "a", tokenizer)


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = write_lazy(tmp_path / "a.lazy", [[]], [[50_000]])

    with pytest.raises(DataError, match="up to 50000"):
        import_lazy(folder, tmp_path / "a", tokenizer)
    assert not list(tmp_path.glob("a.*.tmp"))


def test_an_existing_output_is_replaced_only_when_asked(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    first = write_lazy(tmp_path / "a.lazy", [[]], [[10]])
    second = write_lazy(tmp_path / "b.lazy", [[]], [[11, 12]])
    import_lazy(first, tmp_path / "a", tokenizer)

    with pytest.raises(DataError, match=r"a\.bin exists already.*\n.*--overwrite"):
        import_lazy(second, tmp_path / "a", tokenizer)
    assert open_indexed(tmp_path / "a").document(0).tolist() == [CLS, 10, EOS]
    import_lazy(second, tmp_path / "a", tokenizer, overwrite=True)
    assert open_indexed(tmp_path / "a").document(0).tolist() == [CLS, 11, 12, EOS]
    assert validate_corpus(tmp_path / "a").is_sound


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = write_lazy(tmp_path / "a.lazy", PROMPTS, TEXTS)
    with (folder / "text.len.pkl").open("wb") as stream:
        pickle.dump(Path("/tmp"), stream)

    with pytest.raises(DataError, match="is not a number"):
        import_lazy(folder, tmp_path / "a", tokenizer)
