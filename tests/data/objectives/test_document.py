"""Length and form of the long blank."""

import numpy as np
import pytest

from glm_dist.data.objectives.base import Window
from glm_dist.data.objectives.document import DocumentHiding
from glm_dist.data.objectives.glm import BlankInfilling, Variations
from glm_dist.data.rows import Row
from tests.data.examples import BERT


def objective(suffix_share: float = 0.5, min_ratio: float = 0.25) -> DocumentHiding:
    return DocumentHiding(special=BERT, min_ratio=min_ratio, suffix_share=suffix_share)


def lay_out(hiding: DocumentHiding, tokens: np.ndarray, rng: np.random.Generator) -> Row:
    """Make a row of 102 tokens, as long as 100 tokens of text with one blank."""
    infilling = BlankInfilling(hiding, BERT, 102, Variations(max_position=512))
    assert infilling.window_length == 100
    return infilling.build(Window(tokens, False), rng)


ONE_DOCUMENT = np.array([101] + [7] * 98 + [0])
TWO_DOCUMENTS = np.array([101] + [7] * 48 + [0, 101] + [8] * 48 + [0])


def test_lengths_are_uniform_from_the_least_share_to_almost_everything() -> None:
    rng = np.random.default_rng(0)
    lengths = [
        int(objective().choose(Window(ONE_DOCUMENT, False), rng).blanks.lengths[0])
        for _ in range(8000)
    ]

    # int(0.25 * 100) = 25 … 98: 74 values, mean 61.5, each about 108 times.
    assert (min(lengths), max(lengths)) == (25, 98)
    assert np.mean(lengths) == pytest.approx(61.5, abs=1.0)
    counts = np.bincount(lengths, minlength=99)[25:]
    # 99.9 % quantile of chi-square with 73 degrees of freedom is 116.
    assert ((counts - 8000 / 74) ** 2 / (8000 / 74)).sum() < 116


def test_the_two_forms_come_in_their_shares() -> None:
    rng = np.random.default_rng(0)
    plans = [objective(0.3).choose(Window(ONE_DOCUMENT, False), rng) for _ in range(4000)]

    assert np.mean([not plan.closes_with_eop[0] for plan in plans]) == pytest.approx(0.3, abs=0.03)


def test_several_documents_always_hide_the_tail() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        plan = objective(0.0).choose(Window(TWO_DOCUMENTS, False), rng)
        blanks = plan.blanks
        assert not plan.closes_with_eop.any()
        assert blanks.starts[0] + blanks.lengths[0] == 100


def test_a_middle_leaves_first_and_last_token_visible() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        plan = objective(0.0).choose(Window(ONE_DOCUMENT, False), rng)
        blanks = plan.blanks
        assert plan.closes_with_eop.all()
        assert blanks.starts[0] >= 1
        assert blanks.starts[0] + blanks.lengths[0] <= 99


def test_both_forms_fill_the_row() -> None:
    rng = np.random.default_rng(0)
    tail = lay_out(objective(1.0), ONE_DOCUMENT, rng)
    middle = lay_out(objective(0.0), ONE_DOCUMENT, rng)

    assert len(tail.tokens) == len(middle.tokens) == 102
    assert tail.num_real_tokens == 101
    assert middle.num_real_tokens == 102


def test_a_scrap_of_text_makes_a_row_without_a_blank() -> None:
    row = lay_out(objective(), np.array([101, 0]), np.random.default_rng(0))

    assert not row.loss_mask.any()
