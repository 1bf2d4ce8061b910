"""Span lengths, placement and order, against independent arithmetic and statistics."""

import math

import numpy as np
import pytest

from glm_dist.data.objectives.span import (
    Blanks,
    Stretches,
    choose_spans,
    find_stretches,
    largest_span_count,
    span_length_probabilities,
)

CDF = span_length_probabilities(3.0).cumsum()


def test_length_probabilities_are_a_poisson_without_zero() -> None:
    # Poisson(3): P(1) = 3 e^-3, P(2) = 4.5 e^-3, and everything but P(0) = e^-3 and the far tail.
    probabilities = span_length_probabilities(3.0)

    assert len(probabilities) == 39
    assert probabilities[0] == pytest.approx(3 * math.exp(-3) / (1 - math.exp(-3)), rel=1e-12)
    assert probabilities[1] == pytest.approx(4.5 * math.exp(-3) / (1 - math.exp(-3)), rel=1e-12)
    # 3 / (1 - e^-3) = 3.157
    assert probabilities @ np.arange(1, 40) == pytest.approx(3.1572, abs=1e-4)


def test_span_count_of_unit_lengths_is_the_number_of_tokens() -> None:
    assert largest_span_count(np.array([1.0]), 76) == 76


def test_span_count_of_a_fair_coin_between_one_and_two() -> None:
    # 2 tokens from lengths 1 or 2, mean 1.5: one draw covers 1.5, two draws (the second is needed
    # half of the time) cover 2.25 >= 2.
    assert largest_span_count(np.array([0.5, 0.5]), 2) == 2


def test_stretches_are_the_maximal_runs() -> None:
    stretches = find_stretches(np.array([True, False, False, True, True, False]))

    assert stretches.starts.tolist() == [1, 5]
    assert stretches.lengths.tolist() == [2, 1]


def _draw(stretches: Stretches, seed: int, *, num_tokens: int = 76, max_spans: int = 27) -> Blanks:
    rng = np.random.default_rng(seed)
    return choose_spans(stretches, rng, length_cdf=CDF, num_tokens=num_tokens, max_spans=max_spans)


@pytest.mark.parametrize(
    "cuts",
    [(), (256,), (100, 101, 102, 400), tuple(range(0, 512, 9)), tuple(range(0, 512, 4))],
    ids=["one-document", "two", "unequal", "verses", "crumbs"],
)
def test_spans_stay_inside_one_document_and_never_touch(cuts: tuple[int, ...]) -> None:
    may_mask = np.ones(512, np.bool_)
    may_mask[list(cuts)] = False
    stretches = find_stretches(~may_mask)

    for seed in range(200):
        blanks = _draw(stretches, seed)
        taken = np.zeros(513, np.int64)
        for start, length in zip(blanks.starts, blanks.lengths, strict=True):
            assert may_mask[start : start + length].all()
            taken[start : start + length + 1] += 1  # the span and one visible token behind it
        assert taken.max() == 1


def test_spans_cover_the_wanted_share() -> None:
    stretches = find_stretches(np.zeros(520, np.bool_))
    covered = [int(_draw(stretches, seed, num_tokens=78).lengths.sum()) for seed in range(2000)]

    assert np.mean(covered) == pytest.approx(78, rel=0.01)


def test_crumbs_of_documents_lose_only_the_spans_without_room() -> None:
    # Documents of 3 tokens hold a span of at most 3; spans of 4 or more find no room.
    may_mask = np.ones(512, np.bool_)
    may_mask[::4] = False
    kept = [_draw(find_stretches(~may_mask), seed).lengths for seed in range(300)]

    assert max(int(lengths.max()) for lengths in kept) == 3
    assert np.mean([len(lengths) for lengths in kept]) > 0.5 * 24


def test_first_document_takes_its_share_of_the_spans() -> None:
    may_mask = np.ones(512, np.bool_)
    may_mask[128] = False
    stretches = find_stretches(~may_mask)
    inside = total = 0
    for seed in range(3000):
        blanks = _draw(stretches, seed)
        inside += int(blanks.lengths[blanks.starts < 128].sum())
        total += int(blanks.lengths.sum())

    assert inside / total == pytest.approx(128 / 511, abs=0.005)


def test_lengths_follow_the_distribution_in_spite_of_both_limits() -> None:
    stretches = find_stretches(np.zeros(520, np.bool_))
    counts = np.zeros(40)
    for seed in range(4000):
        counts += np.bincount(_draw(stretches, seed).lengths, minlength=40)
    expected = span_length_probabilities(3.0) * counts.sum()
    tail = expected < 50  # pool rare lengths
    observed = np.append(counts[1:][~tail], counts[1:][tail].sum())
    wanted = np.append(expected[~tail], expected[tail].sum())
    chi_square = ((observed - wanted) ** 2 / wanted).sum()

    # 99.9 % quantile of chi-square with at most 11 degrees of freedom is 31.3.
    assert len(wanted) <= 12
    assert chi_square < 31.3


def test_order_of_emission_is_uniform() -> None:
    # The text order of the first emitted span among n is uniform: mean rank share 1/2.
    stretches = find_stretches(np.zeros(520, np.bool_))
    shares = []
    for seed in range(3000):
        starts = _draw(stretches, seed).starts
        shares.append((starts < starts[0]).sum() / (len(starts) - 1))

    # Standard error of the mean of 3000 uniform numbers is 0.0053.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.var(shares) == pytest.approx(1 / 12, rel=0.12)  # 24 ranks: (1 + 2/23) / 12


def test_every_position_is_masked_about_equally_often() -> None:
    stretches = find_stretches(np.zeros(520, np.bool_))
    masked = np.zeros(520)
    for seed in range(4000):
        blanks = _draw(stretches, seed)
        for start, length in zip(blanks.starts, blanks.lengths, strict=True):
            masked[start : start + length] += 1
    share = masked / 4000

    assert share[20:-20].min() > 0.11
    assert share[20:-20].max() < 0.19


def test_a_window_without_text_has_no_spans() -> None:
    blanks = _draw(find_stretches(np.ones(4, np.bool_)), 0)

    assert len(blanks.starts) == 0
