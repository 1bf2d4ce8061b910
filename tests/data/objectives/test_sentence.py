"""Which pieces of a window are sentences, and which of them are hidden."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glm_dist.config.schema import TokenizerKind
from glm_dist.data.objectives.base import Window
from glm_dist.data.objectives.glm import BlankInfilling, Variations
from glm_dist.data.objectives.sentence import SentenceHiding, find_sentences
from glm_dist.data.objectives.span import Stretches
from glm_dist.data.row_source import open_row_source
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.data.tokenizer.training import train_sentencepiece
from tests.data.corpora import make_config, write_corpus
from tests.data.examples import BERT

ENDS = np.zeros(30600, np.bool_)
ENDS[[1012, 9]] = True  # "." and another mark


def sentences(tokens: list[int], *, starts_mid_document: bool = False) -> Stretches:
    return find_sentences(np.array(tokens), ENDS, BERT, starts_mid_document=starts_mid_document)


def spans(found: Stretches) -> list[tuple[int, int]]:
    return list(zip(found.starts.tolist(), found.lengths.tolist(), strict=True))


def test_sentences_end_with_their_mark_and_leave_out_the_opening_token() -> None:
    assert spans(sentences([101, 5, 6, 1012, 7, 9, 0])) == [(1, 3), (4, 2)]


def test_an_unfinished_piece_before_a_document_end_is_no_sentence() -> None:
    assert spans(sentences([101, 5, 1012, 7, 8, 0, 101, 5, 1012])) == [(1, 2), (7, 2)]


def test_a_tail_cut_off_by_the_window_counts() -> None:
    assert spans(sentences([101, 5, 1012, 7, 8])) == [(1, 2), (3, 2)]


def test_the_rest_of_an_earlier_sentence_does_not_count() -> None:
    assert spans(sentences([101, 5, 1012, 7, 1012], starts_mid_document=True)) == [(3, 2)]
    assert spans(sentences([101, 5, 1012, 0], starts_mid_document=True)) == [(1, 2)]


def objective(mask_ratio: float = 0.15, max_sentences: int = 4) -> SentenceHiding:
    return SentenceHiding(BERT, max_sentences, mask_ratio, ENDS)


def lay_out(hiding: SentenceHiding, tokens: np.ndarray) -> Row:
    """Make a row of 128 tokens."""
    infilling = BlankInfilling(hiding, BERT, 128, Variations(max_position=512))
    return infilling.build(Window(tokens, False), np.random.default_rng(0))


def test_sentences_are_taken_until_the_share_is_covered() -> None:
    # 12 sentences of 10 tokens in 121: int(0.15 * 121) = 18 tokens need 2 of them.
    tokens = np.array([101] + ([5] * 9 + [1012]) * 12)
    row = lay_out(objective(), tokens)

    assert (row.tokens == BERT.smask).sum() == 2
    assert row.loss_mask.sum() == 2 * 11
    assert row.prefix_length == 121 - 2 * 9


def test_short_sentences_never_outgrow_the_row() -> None:
    tokens = np.array([101] + [5, 1012] * 59)
    row = lay_out(objective(mask_ratio=0.5), tokens)

    assert (row.tokens == BERT.smask).sum() == 4
    assert len(row.tokens) == 128


def test_text_without_end_marks_hides_one_stretch_of_the_wanted_size() -> None:
    tokens = np.array([101] + [5] * 119)
    row = lay_out(objective(), tokens)

    assert (row.tokens == BERT.smask).sum() == 1
    assert row.loss_mask.sum() == 18 + 1  # int(0.15 * 120) and the end token


def test_every_sentence_is_hidden_about_equally_often() -> None:
    tokens = np.array([101] + ([5] * 9 + [1012]) * 12)
    rng = np.random.default_rng(1)
    counts = np.zeros(121)
    for _ in range(3000):
        counts[objective().choose(Window(tokens, False), rng).blanks.starts] += 1
    hidden = counts[1::10]

    assert (counts > 0).sum() == 12
    # 3000 * 2 / 12 = 500, standard deviation sqrt(3000 * 1/6 * 5/6) = 20.4.
    assert abs(hidden - 500).max() < 85


HINDI = "यह एक छोटा वाक्य है जो यहाँ समाप्त होता है। "
ARABIC = "هل هذه جملة قصيرة تنتهي هنا بعلامة استفهام؟ "
TITLES = "A Short History of the Lighthouses of Brittany"


@pytest.mark.parametrize(
    ("documents", "is_official"),
    [
        ([HINDI * 30] * 40, False),
        ([ARABIC * 30] * 40, False),
        ([TITLES] * 1200, False),
        (["This is one sentence. Here is another one! " * 30] * 40, True),
    ],
    ids=["Hindi", "Arabic", "titles", "English"],
)
def test_sentences_of_any_script_and_titles_hide_the_wanted_share(
    documents: list[str], is_official: bool, tmp_path: Path
) -> None:
    model = tmp_path / "tokenizer.model"
    train_sentencepiece([HINDI, ARABIC, TITLES, *documents], model, vocab_size=305)
    spec = TokenizerSpec(TokenizerKind.sentencepiece, str(model))
    tokenizer = open_tokenizer(spec)
    stored = [tokenizer.store_document(text, np.dtype(np.uint16)).tolist() for text in documents]
    config = make_config(
        tmp_path,
        {"text": write_corpus(tmp_path, "text", stored)},
        shares=(0.0, 1.0, 0.0),
        row_length=256,
    )
    kind = replace(
        config.tokenizer, kind=spec.kind, path=spec.path, vocab_size=tokenizer.vocab_size
    )

    source = open_row_source(replace(config, tokenizer=kind))

    predicted = np.mean([source.row(number).loss_mask.mean() for number in range(60)])
    assert 0.13 < predicted < 0.3
    assert (source.fingerprint()["row_rule"] == 2) == is_official
