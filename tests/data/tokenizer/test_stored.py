"""The tokenizer of a run, kept in its folder and known by its checkpoint."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece

from glm_dist.config.schema import TokenizerConfig, TokenizerKind
from glm_dist.data.tokenizer.stored import load_stored_tokenizer, store_tokenizer
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.errors import DataError
from tests.messages import Says

PIECES = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", ".", "one", "two"]


def config_of(kind: TokenizerKind, path: Path) -> TokenizerConfig:
    """A configuration that fits a tokenizer's files."""
    spec = TokenizerSpec(kind=kind, path=str(path))
    return TokenizerConfig(
        kind=kind,
        path=str(path),
        vocab_size=open_tokenizer(spec).vocab_size,
        task_masks=spec.task_masks,
    )


def bert(folder: Path, pieces: list[str] = PIECES) -> TokenizerConfig:
    """A WordPiece vocabulary under a name of its own."""
    (folder / "uncased-vocab.txt").write_text("\n".join(pieces))
    return config_of(TokenizerKind.bert, folder / "uncased-vocab.txt")


def gpt2(folder: Path) -> TokenizerConfig:
    """A byte-level vocabulary with prefixed names in a folder."""
    pieces = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
    (folder / "gpt2-vocab.json").write_text(json.dumps(pieces))
    (folder / "gpt2-merges.txt").write_text("#version: 0.2\na b\n")
    return config_of(TokenizerKind.gpt2, folder)


def sentence_pieces(folder: Path) -> TokenizerConfig:
    """A SentencePiece model without the usual ending."""
    (folder / "text").write_text("one two three four five six seven\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "m"), vocab_size=22
    )
    (folder / "m.model").rename(folder / "pieces.bin")
    return config_of(TokenizerKind.sentencepiece, folder / "pieces.bin")


@pytest.mark.parametrize("make", [bert, gpt2, sentence_pieces])
def test_a_run_is_read_with_its_own_copy(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source, run, moved = tmp_path / "source", tmp_path / "run", tmp_path / "elsewhere"
    source.mkdir()
    run.mkdir()
    config = make(source)
    before = open_tokenizer(TokenizerSpec.of(config))
    store_tokenizer(config, run)
    shutil.rmtree(source)
    run.rename(moved)
    found = load_stored_tokenizer(
        config, moved, checkpoint={"data": {"tokenizer": before.fingerprint}}
    )
    assert found.fingerprint == before.fingerprint
    assert found.encode("ab one") == before.encode("ab one")
    assert sorted(path.name for path in moved.iterdir()) == ["tokenizer"]


def test_a_copy_stays_and_a_wrong_one_is_replaced(tmp_path: Path) -> None:
    config = bert(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    store_tokenizer(config, run)
    copy = run / "tokenizer" / "vocab.txt"
    written = copy.stat().st_ino
    store_tokenizer(config, run)
    assert copy.stat().st_ino == written
    # A run that uses its own copy, as one does after it was moved.
    store_tokenizer(replace(config, path=str(copy.parent)), run)
    assert copy.stat().st_ino == written
    copy.write_text("cut")
    store_tokenizer(config, run)
    assert copy.read_text().split("\n") == PIECES


def test_another_tokenizer_of_the_same_size_is_refused(tmp_path: Path, says: Says) -> None:
    trained = open_tokenizer(TokenizerSpec.of(bert(tmp_path))).fingerprint
    config = bert(tmp_path, [*PIECES[:-1], "ten"])
    now = open_tokenizer(TokenizerSpec.of(config)).fingerprint
    run = tmp_path / "run"
    with pytest.raises(DataError) as caught:
        load_stored_tokenizer(config, run, checkpoint={"data": {"tokenizer": trained}})
    assert f"it is {now}, the checkpoint names {trained}" in str(caught.value)
    says(caught.value)
    # A checkpoint that names none says nothing.
    assert load_stored_tokenizer(config, run, checkpoint={}).fingerprint == now


def test_a_tokenizer_that_is_nowhere_is_asked_for(tmp_path: Path, says: Says) -> None:
    config = bert(tmp_path)
    moved = Path(config.path).rename(tmp_path / "other.txt")
    run = tmp_path / "run"
    with pytest.raises(DataError) as caught:
        load_stored_tokenizer(config, run, checkpoint={})
    assert str(run) in str(caught.value)
    says(caught.value)
    assert load_stored_tokenizer(config, run, checkpoint={}, path=moved).vocab_size == 12
