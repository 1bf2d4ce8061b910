"""The worked examples of GLM's layout, written out by hand from the official collator's output."""

import numpy as np
import pytest

from glm_dist.data.objectives.base import NO_BLANKS, Blanks
from glm_dist.data.objectives.layout import lay_out_blanks
from glm_dist.data.rows import Row
from tests.data.examples import BERT

TEXT = [101, 1996, 4937, 2938, 2006, 1996, 13523, 1012, 2009, 2001, 3407, 1012, 0]
TWO_DOCUMENTS = [
    101, 11, 12, 13, 1012, 14, 15, 16, 17, 1012, 0,
    101, 21, 22, 23, 24, 25, 1012, 26, 27, 28, 29, 30, 31, 1012,
]  # fmt: skip


def lay_out(
    source: list[int],
    spans: list[tuple[int, int]],
    mask: int,
    *,
    closes_with_eop: bool = True,
    row_length: int | None = None,
) -> Row:
    starts, lengths = np.array(spans, np.int64).reshape(-1, 2).T
    return lay_out_blanks(
        np.array(source, np.int64),
        Blanks(starts, lengths),
        closes_with_eop=closes_with_eop,
        mask=mask,
        special=BERT,
        objective="span",
        row_length=row_length,
    )


def test_one_span_of_three_tokens() -> None:
    row = lay_out(TEXT, [(2, 3)], BERT.mask)

    part_a = [101, 1996, 103, 1996, 13523, 1012, 2009, 2001, 3407, 1012, 0]
    assert row.tokens.tolist() == [*part_a, 30522, 4937, 2938, 2006]
    assert row.targets[11:].tolist() == [4937, 2938, 2006, 30523]
    assert row.loss_mask.tolist() == [False] * 11 + [True] * 4
    assert row.positions.tolist() == [*range(11), 2, 2, 2, 2]
    assert row.block_positions.tolist() == [0] * 11 + [1, 2, 3, 4]
    assert row.prefix_length == 11


def test_two_adjacent_sentences_keep_two_masks_and_their_order() -> None:
    row = lay_out(TEXT, [(8, 4), (1, 7)], BERT.smask)

    first = [2009, 2001, 3407, 1012]
    second = [1996, 4937, 2938, 2006, 1996, 13523, 1012]
    assert row.tokens.tolist() == [101, 30525, 30525, 0, 30522, *first, 30522, *second]
    assert row.targets[4:].tolist() == [*first, 30523, *second, 30523]
    assert row.positions.tolist() == [0, 1, 2, 3] + [2] * 5 + [1] * 8
    assert row.block_positions.tolist() == [0] * 4 + [1, 2, 3, 4, 5] + [1, 2, 3, 4, 5, 6, 7, 8]
    assert row.prefix_length == 4


def test_tail_of_a_document_ends_with_its_own_end_token() -> None:
    row = lay_out(TEXT, [(5, 8)], BERT.gmask, closes_with_eop=False)

    part_a = [101, 1996, 4937, 2938, 2006, 30524]
    tail = [1996, 13523, 1012, 2009, 2001, 3407, 1012]
    assert row.tokens.tolist() == [*part_a, 30522, *tail]
    assert row.targets[6:].tolist() == [*tail, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5] + [5] * 8
    assert row.block_positions.tolist() == [0] * 6 + [1, 2, 3, 4, 5, 6, 7, 8]


def test_middle_of_a_document_leaves_its_end_visible() -> None:
    row = lay_out(TEXT, [(4, 8)], BERT.gmask)

    middle = [2006, 1996, 13523, 1012, 2009, 2001, 3407, 1012]
    assert row.tokens.tolist() == [101, 1996, 4937, 2938, 30524, 0, 30522, *middle]
    assert row.targets[6:].tolist() == [*middle, 30523]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5] + [4] * 9


def test_two_documents_in_one_window() -> None:
    row = lay_out(TWO_DOCUMENTS, [(12, 5), (4, 1)], BERT.mask)

    part_a = [
        101, 11, 12, 13, 103, 14, 15, 16, 17, 1012, 0,
        101, 103, 1012, 26, 27, 28, 29, 30, 31, 1012,
    ]  # fmt: skip
    assert row.tokens.tolist() == [*part_a, 30522, 21, 22, 23, 24, 25, 30522, 1012]
    assert row.targets[21:].tolist() == [21, 22, 23, 24, 25, 30523, 1012, 30523]
    assert row.positions[21:].tolist() == [12] * 6 + [4] * 2
    assert row.block_positions[21:].tolist() == [1, 2, 3, 4, 5, 6, 1, 2]
    assert row.prefix_length == 21


def test_hidden_opening_tokens_of_later_documents_are_not_trained() -> None:
    row = lay_out(TWO_DOCUMENTS, [(9, 16)], BERT.gmask, closes_with_eop=False)

    hidden_opening = row.targets[row.prefix_length :] == 101
    assert hidden_opening.sum() == 1
    assert (row.loss_mask[row.prefix_length :] == ~hidden_opening).all()


def test_a_window_without_blanks_is_all_part_a() -> None:
    row = lay_out_blanks(
        np.array(TEXT), NO_BLANKS, closes_with_eop=True, mask=103, special=BERT, objective="span",
        row_length=16,
    )  # fmt: skip

    assert row.tokens.tolist() == [*TEXT, 0, 0, 0]
    assert row.prefix_length == row.num_real_tokens == 13
    assert not row.loss_mask.any()


def test_a_row_too_long_for_its_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        lay_out(TEXT, [(2, 3)], BERT.mask, row_length=14)
