"""Texts in, texts out."""

import io

import pytest

from glm_dist.cli.generate import lines_of_input
from glm_dist.config.schema import TokenizerConfig, TokenizerKind
from glm_dist.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from glm_dist.errors import DataError
from glm_dist.generate.complete import context_of, not_text, render
from glm_dist.generate.infill import Blank
from tests.data.corpora import CLS, EOS, GMASK, MASK, SOP, VOCAB_SIZE, write_vocabulary


@pytest.fixture
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Words w6 … w999 and GLM's special tokens."""
    return load_tokenizer(
        TokenizerConfig(
            kind=TokenizerKind.bert,
            path=str(write_vocabulary(tmp_path_factory.mktemp("vocabulary"))),
            vocab_size=VOCAB_SIZE,
            task_masks=True,
        )
    )


def test_a_context_is_closed_unless_it_ends_in_an_open_tail(tokenizer: Tokenizer) -> None:
    assert context_of(tokenizer, "w10 [MASK] w11") == [CLS, 10, MASK, 11, EOS]
    assert context_of(tokenizer, "w10 w11 [gMASK]") == [CLS, 10, 11, GMASK]


def test_a_text_without_a_blank_is_continued(tokenizer: Tokenizer) -> None:
    assert context_of(tokenizer, "w10 w11") == [CLS, 10, 11, GMASK]


def test_bytes_that_are_no_text_are_refused(tokenizer: Tokenizer) -> None:
    text = b"w10 \xff [MASK]".decode(errors="surrogateescape")  # as arguments arrive

    with pytest.raises(DataError, match="UTF-8"):
        context_of(tokenizer, text)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_stream_that_is_no_text_is_refused(
    errors: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"w10\n\xff\xfe\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", stream)

    with pytest.raises(DataError, match="UTF-8"):
        [context_of(tokenizer, line) for line in lines_of_input()]


def test_answers_stand_in_brackets_where_the_blanks_were(tokenizer: Tokenizer) -> None:
    context = context_of(tokenizer, "w10 [MASK] w11 [MASK]")
    blanks = [Blank(mask_index=2, tokens=[20, 21]), Blank(mask_index=4, tokens=[22])]

    assert render(tokenizer, context, blanks) == "w10 [w20 w21] w11 [w22]"


def test_structure_is_no_text(tokenizer: Tokenizer) -> None:
    banned = not_text(tokenizer.special, VOCAB_SIZE)

    assert {CLS, EOS, MASK, GMASK, SOP} <= set(banned)
    assert max(banned) < VOCAB_SIZE
    assert not {10, 11, 12} & set(banned)


def test_task_masks_need_a_tokenizer_that_has_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    plain = load_tokenizer(
        TokenizerConfig(
            kind=TokenizerKind.bert,
            path=str(write_vocabulary(tmp_path_factory.mktemp("plain"))),
            vocab_size=VOCAB_SIZE - 2,
            task_masks=False,
        )
    )

    with pytest.raises(DataError, match=r"has \[gMASK\], but \[MASK\] is the only mask token"):
        context_of(plain, "w10 [gMASK]")
