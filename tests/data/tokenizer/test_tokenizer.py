"""Tokenizers over vocabularies small enough to write down, and one trained on the spot."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from glm_dist.cli.main import main
from glm_dist.config.schema import TokenizerConfig, TokenizerKind
from glm_dist.data.tokenizer.choice import guess_kind
from glm_dist.data.tokenizer.tokenizer import (
    SENTENCE_END_MARKS,
    Tokenizer,
    TokenizerSpec,
    load_tokenizer,
    open_tokenizer,
)
from glm_dist.data.tokenizer.training import sample_paragraphs, train_sentencepiece
from glm_dist.errors import DataError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c", ".", "[", "]", "mask"]
TEXT = "Four score and seven years ago our fathers brought forth, upon this continent.\n" * 40


@pytest.fixture(scope="module")
def bert_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece vocabulary of 12 pieces."""
    file = tmp_path_factory.mktemp("bert") / "vocab.txt"
    file.write_text("\n".join(WORDS) + "\n")
    return file


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE with single letters, one merge, and the end of text."""
    folder = tmp_path_factory.mktemp("gpt2")
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a\n")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A SentencePiece model of 296 ids."""
    file = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    train_sentencepiece([TEXT], file, vocab_size=296)
    return open_tokenizer(TokenizerSpec(TokenizerKind.sentencepiece, str(file)))


def test_bert_keeps_its_own_special_tokens_and_appends_the_rest(bert_vocabulary: Path) -> None:
    tokenizer = open_tokenizer(TokenizerSpec(TokenizerKind.bert, str(bert_vocabulary)))
    special = tokenizer.special

    assert (special.pad, special.eos, special.cls, special.sep, special.mask) == (0, 0, 2, 3, 4)
    assert (special.sop, special.eop, special.gmask, special.smask) == (12, 13, 14, 15)
    assert tokenizer.vocab_size == 16


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_piece_that_some_take_for_a_line_end_moves_no_other(
    tmp_path: Path, line_end: str, is_closed: bool
) -> None:
    odd = ["\u2028", "\x85", "\x0b", "\x1c", "\u2029"]
    text = line_end.join([*WORDS[:5], *odd, "a", "b"]) + (line_end if is_closed else "")
    (tmp_path / "vocab.txt").write_bytes(text.encode("utf-8"))
    tokenizer = open_tokenizer(TokenizerSpec(TokenizerKind.bert, str(tmp_path)))

    assert tokenizer.encode("a b") == [10, 11]
    assert tokenizer.special.sop == 12


def test_without_task_masks_every_objective_uses_the_one_mask(bert_vocabulary: Path) -> None:
    tokenizer = open_tokenizer(
        TokenizerSpec(TokenizerKind.bert, str(bert_vocabulary), task_masks=False)
    )

    assert tokenizer.vocab_size == 14
    assert tokenizer.special.gmask == tokenizer.special.smask == tokenizer.special.mask == 4
    assert not tokenizer.special.has_task_masks


def test_gpt2_appends_in_the_official_order(gpt2_folder: Path) -> None:
    special = open_tokenizer(TokenizerSpec(TokenizerKind.gpt2, str(gpt2_folder))).special

    # 256 bytes, one merge and the end of text: 258 pieces, the last of which closes documents.
    assert (special.pad, special.eos) == (257, 257)
    assert (special.sop, special.eop, special.cls, special.mask) == (258, 259, 260, 261)
    assert (special.sep, special.unk, special.gmask, special.smask) == (262, 263, 264, 265)


def test_names_of_special_tokens_are_control_tokens_only_in_prompts(
    bert_vocabulary: Path,
) -> None:
    tokenizer = open_tokenizer(TokenizerSpec(TokenizerKind.bert, str(bert_vocabulary)))

    assert tokenizer.encode("a [MASK] bc [gMASK]") == [5, 4, 6, 7, 14]
    assert tokenizer.encode_document("[MASK]") == [9, 11, 10]


def test_a_mask_swallows_the_space_on_its_left_in_byte_level_bpe(gpt2_folder: Path) -> None:
    tokenizer = open_tokenizer(TokenizerSpec(TokenizerKind.gpt2, str(gpt2_folder)))

    assert tokenizer.encode("a \n[MASK] a") == tokenizer.encode("a[MASK] a")
    assert tokenizer.encode("a [CLS]") != tokenizer.encode("a[CLS]")


def test_blank_text_has_no_tokens(trained: Tokenizer) -> None:
    assert trained.encode("") == trained.encode(" \n ") == []
    assert trained.encode_document(" \n ") == []


def test_trained_model_gives_back_the_exact_text(trained: Tokenizer) -> None:
    text = "  Four  score\tand\n\n seven 1863 ÷ 你好 🙂 years "

    assert trained.decode(trained.encode(text)) == text
    assert trained.special.unk not in trained.encode(text)


def test_trained_model_has_as_many_ids_as_asked_for(trained: Tokenizer) -> None:
    special = trained.special

    assert trained.vocab_size == 296
    assert (special.eos, special.cls, special.sep, special.mask) == (288, 289, 290, 291)
    assert (special.sop, special.eop, special.gmask, special.smask) == (292, 293, 294, 295)


def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.model", "b.model"):
        train_sentencepiece([TEXT], tmp_path / name, vocab_size=296)

    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_a_vocabulary_too_large_for_the_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Choose --vocab-size 300 or less"):
        train_sentencepiece([TEXT], tmp_path / "a.model", vocab_size=9000)


@pytest.mark.parametrize(
    ("text", "vocab_size", "answer"),
    [
        ("", 300, "There is no text"),
        (TEXT, 264, "a piece take 265"),
        (TEXT, 270, "a larger --vocab-size"),
    ],
)
def test_a_vocabulary_that_cannot_be_learnt_is_answered(
    tmp_path: Path, text: str, vocab_size: int, answer: str
) -> None:
    with pytest.raises(DataError, match=answer):
        train_sentencepiece([text], tmp_path / "a.model", vocab_size=vocab_size)


def test_sample_is_bounded_and_spread_over_the_whole_corpus() -> None:
    documents = [f"{number:06d} " * 10 + "\n" for number in range(20_000)]
    sample = sample_paragraphs(documents, 200_000)

    size = sum(map(len, sample))
    assert 60_000 < size <= 200_000
    # Each document is its own number repeated; the mean number of an even sample is 10 000.
    numbers = [int(text[:6]) for text in sample]
    assert sum(numbers) / len(numbers) == pytest.approx(10_000, rel=0.05)
    assert numbers == sorted(numbers)


def test_ids_beyond_the_vocabulary_print_as_numbers(trained: Tokenizer) -> None:
    assert trained.decode([*trained.encode("ago"), 99_999]) == "ago<|99999|>"


def test_special_ids_print_their_names(trained: Tokenizer) -> None:
    assert trained.decode(trained.encode("our[sMASK] fathers")) == "our[sMASK] fathers"


def test_word_pieces_stand_apart_from_special_tokens(bert_vocabulary: Path) -> None:
    tokenizer = open_tokenizer(TokenizerSpec(TokenizerKind.bert, str(bert_vocabulary)))

    assert tokenizer.decode(tokenizer.encode("a [MASK] bc.")) == "a [MASK] bc."


def test_sentence_ends_know_chinese_marks(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "。", "；", "你", "3.5", "!", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = open_tokenizer(TokenizerSpec(TokenizerKind.bert, str(tmp_path / "vocab.txt")))

    (ends,) = tokenizer.sentence_ends(SENTENCE_END_MARKS)
    assert len(ends) == tokenizer.vocab_size
    assert ends.nonzero()[0].tolist() == [5, 6, 8, 9]


def test_any_tokenizer_json_keeps_the_special_tokens_it_has(tmp_path: Path) -> None:
    model = models.WordLevel({"</s>": 0, "<mask>": 1, "a": 2, "b": 3, "<unk>": 4}, "<unk>")
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(["</s>", "<mask>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(TokenizerSpec(TokenizerKind.huggingface, str(tmp_path)))
    special = tokenizer.special

    assert (special.eos, special.mask, special.unk) == (0, 1, 4)
    assert (special.cls, special.sep, special.sop, special.eop) == (5, 6, 7, 8)
    assert (special.gmask, special.smask, tokenizer.vocab_size) == (9, 10, 11)
    assert tokenizer.encode("a [gMASK] b") == [2, 9, 3]


def test_vocabulary_size_that_disagrees_names_the_right_one(bert_vocabulary: Path) -> None:
    config = TokenizerConfig(
        kind=TokenizerKind.bert, path=str(bert_vocabulary), vocab_size=30, task_masks=True
    )

    with pytest.raises(DataError, match=r"tokenizer\.vocab_size=16"):
        load_tokenizer(config)


@pytest.mark.parametrize("kind", list(TokenizerKind), ids=lambda kind: kind.value)
def test_missing_files_are_named(kind: TokenizerKind, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        open_tokenizer(TokenizerSpec(kind, str(tmp_path / "nowhere")))


def test_a_vocabulary_of_another_kind_is_refused(bert_vocabulary: Path, gpt2_folder: Path) -> None:
    with pytest.raises(DataError, match="SentencePiece"):
        open_tokenizer(TokenizerSpec(TokenizerKind.sentencepiece, str(bert_vocabulary)))
    with pytest.raises(DataError, match=r"\[PAD\]"):
        open_tokenizer(TokenizerSpec(TokenizerKind.bert, str(gpt2_folder / "merges.txt")))


@pytest.mark.parametrize("content", ["", "{", "[1]", "5", '{"a": "b"}', '{"a": 0.5}', "\xff"])
def test_a_damaged_vocab_json_is_named(tmp_path: Path, gpt2_folder: Path, content: str) -> None:
    (tmp_path / "vocab.json").write_text(content, encoding="latin-1")
    (tmp_path / "merges.txt").write_bytes((gpt2_folder / "merges.txt").read_bytes())

    with pytest.raises(DataError, match=r"vocab\.json is no vocab\.json"):
        guess_kind(str(tmp_path))
    with pytest.raises(DataError, match=r"vocab\.json is no vocab\.json"):
        open_tokenizer(TokenizerSpec(TokenizerKind.gpt2, str(tmp_path)))


@pytest.mark.parametrize("merges", ["Ġ a b\n", "Ġ\n", "missing pieces\n", "\xff\n"])
def test_damaged_merges_are_named(tmp_path: Path, gpt2_folder: Path, merges: str) -> None:
    (tmp_path / "vocab.json").write_bytes((gpt2_folder / "vocab.json").read_bytes())
    encoding = "latin-1" if merges == "\xff\n" else "utf-8"
    (tmp_path / "merges.txt").write_text(merges, encoding=encoding)

    with pytest.raises(DataError, match=r"merges\.txt does not hold pairs"):
        open_tokenizer(TokenizerSpec(TokenizerKind.gpt2, str(tmp_path)))


@pytest.mark.parametrize("size", ["nan", "inf", "-1", "0", "1e305", "much"])
def test_sample_sizes_that_are_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    command = ["tokenizer", "train", f"{tmp_path}/a.txt", "--output", f"{tmp_path}/a.model"]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--vocab-size", "296", "--sample-mb", size])

    assert caught.value.code == 2
    assert f"--sample-mb: {size}: expected a number of megabytes" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["", "folder", "folder/", "new/"])
def test_a_model_is_not_written_in_place_of_a_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)

    command = ["tokenizer", "train", "a.txt", "--vocab-size", "296", "--output", output]
    assert main(command) == 2
    assert "Add the name of the file to --output" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "folder"]


def test_a_model_is_written_under_a_name_by_which_commands_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)

    command = ["tokenizer", "train", f"{tmp_path}/a.txt", "--vocab-size", "296"]
    assert main([*command, "--output", f"{tmp_path}/own"]) == 2
    assert f"Write --output {tmp_path}/own.model." in capsys.readouterr().err
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("copies", [1, 2000])
def test_a_sample_that_copies_shrink_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], copies: int
) -> None:
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefgh  "), (3000, 40))
    lines = ["".join(line) for line in letters]
    repeated = "".join(letters[:20].flat)
    (tmp_path / "a.txt").write_text("\n".join([*lines, *[repeated] * copies]))

    command = ["tokenizer", "train", f"{tmp_path}/a.txt", "--vocab-size", "320", "--sample-mb", "1"]
    assert main([*command, "--output", f"{tmp_path}/own.model"]) == 0
    assert ("repeats few paragraphs" in capsys.readouterr().err) == (copies > 1)


def test_fingerprint_changes_with_the_content_and_not_with_the_task_masks(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    first = open_tokenizer(TokenizerSpec(TokenizerKind.bert, str(tmp_path))).fingerprint
    without = open_tokenizer(
        TokenizerSpec(TokenizerKind.bert, str(tmp_path), task_masks=False)
    ).fingerprint
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "d"]))
    longer = open_tokenizer(TokenizerSpec(TokenizerKind.bert, str(tmp_path))).fingerprint

    assert first == without
    assert first != longer


@pytest.mark.parametrize("named", ["gpt2-vocab.json", "gpt2-merges.txt"])
def test_of_two_vocabularies_in_a_folder_the_named_one_is_taken_whole(
    tmp_path: Path, gpt2_folder: Path, named: str
) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / f"gpt2-{name}").write_bytes((gpt2_folder / name).read_bytes())
    vocabulary = json.loads((gpt2_folder / "vocab.json").read_text())
    vocabulary |= {piece: len(vocabulary) + n for n, piece in enumerate(["Ġb", "<mask>", "<s>"])}
    (tmp_path / "roberta-vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "roberta-merges.txt").write_text("#version: 0.2\nĠ b\n")
    alone = open_tokenizer(TokenizerSpec(TokenizerKind.gpt2, str(gpt2_folder)))
    beside = open_tokenizer(TokenizerSpec(TokenizerKind.gpt2, str(tmp_path / named)))

    assert beside.fingerprint == alone.fingerprint
    assert beside.encode("a a b") == alone.encode("a a b")
    assert guess_kind(str(tmp_path / "gpt2-vocab.json")) is TokenizerKind.gpt2
    assert guess_kind(str(tmp_path / "roberta-vocab.json")) is TokenizerKind.roberta
    with pytest.raises(DataError, match=r"gpt2-vocab\.json and roberta-vocab\.json"):
        open_tokenizer(TokenizerSpec(TokenizerKind.gpt2, str(tmp_path)))


def test_merges_of_another_name_are_found_if_they_are_the_only_ones(
    tmp_path: Path, gpt2_folder: Path
) -> None:
    (tmp_path / "encoder-vocab.json").write_bytes((gpt2_folder / "vocab.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((gpt2_folder / "merges.txt").read_bytes())
    spec = TokenizerSpec(TokenizerKind.gpt2, str(tmp_path / "encoder-vocab.json"))

    assert open_tokenizer(spec).encode("a a")


@pytest.mark.parametrize("kind", ["added", "unigram", "words"])
def test_names_of_control_tokens_in_a_document_stay_text(tmp_path: Path, kind: str) -> None:
    names = ["[MASK]", "<s>", "</s>", "<|endoftext|>"]
    model: tokenizers.models.Model
    if kind == "words":
        model = models.WordLevel({w: i for i, w in enumerate(["?", "a", *names])}, unk_token="?")
    elif kind == "unigram":
        letters = sorted({letter for name in names for letter in f"{name} a"})
        scores = [("?", 0.0), *((name, -1.0) for name in names), *((x, -9.0) for x in letters)]
        model = models.Unigram(scores, unk_id=0)
    else:
        model = models.BPE({"a": 0, " ": 1, "<": 2, "s": 3, ">": 4, "/": 5}, [], unk_token=None)
    library = tokenizers.Tokenizer(model)
    if kind == "added":
        library.add_tokens([tokenizers.AddedToken("b", special=False)])
        library.add_tokens([tokenizers.AddedToken(name, special=False) for name in names])
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(TokenizerSpec(TokenizerKind.huggingface, str(tmp_path)))
    special = tokenizer.special

    stored = tokenizer.store_document(f"a {' '.join(names)} a", np.dtype(np.int64)).tolist()

    assert (stored[0], stored[-1]) == (special.cls, special.eos)
    control = {special.cls, special.eos, special.mask, special.sop, special.eop, special.sep}
    assert not control & set(stored[1:-1])
    if kind != "words":  # whose words have no letters
        assert len(stored) > 6
    assert special.mask in tokenizer.encode("a [MASK] a")
    assert library.token_to_id("[MASK]") == special.mask
    if kind == "added":
        assert library.token_to_id("b") in tokenizer.encode_document("a b a")
