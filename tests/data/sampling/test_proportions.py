"""Shares are kept within one at every prefix."""

import random
from fractions import Fraction

import pytest

from glm_dist.data.sampling.proportions import LONGEST_PERIOD, ProportionalSequence, whole_shares

BLENDS = {
    "one": [1],
    "halves": [1, 1],
    "thirds": [1, 1, 1],
    "mixture": [Fraction("0.5"), Fraction("0.3"), Fraction("0.2")],
    "uneven": [1, 2, 3, 7, 11, 13],
    "tiny": [Fraction("0.989"), Fraction("0.01"), Fraction("0.001")],
    "many-tiny": [90, *([1] * 10)],
    "with-zero": [3, 0, 1],
    "tokens": [12_345_678_901, 987_654_321, 55_555_555_557],
    "nine": [Fraction(random.Random(n).randrange(10**9, 10**12)) for n in range(9)],
}


@pytest.mark.parametrize("weights", BLENDS.values(), ids=BLENDS.keys())
def test_counts_are_within_one_of_their_share_at_every_prefix(weights: list[Fraction]) -> None:
    sequence = ProportionalSequence.create([Fraction(weight) for weight in weights])
    total = sum(weights)
    counts = [0] * len(weights)
    worst = Fraction(0)
    for position in range(30_000):
        state, rank = sequence.locate(position)
        assert rank == counts[state]
        counts[state] += 1
        share = Fraction(weights[state]) / total
        worst = max(worst, abs(counts[state] - (position + 1) * share))
    for state, weight in enumerate(weights):
        worst = max(worst, abs(counts[state] - 30_000 * Fraction(weight) / total))

    assert worst < 1


def test_counts_before_a_position_need_no_walk() -> None:
    sequence = ProportionalSequence.create([Fraction(5), Fraction(3), Fraction(2)])

    assert sequence.period == 10
    # 10^15 positions are 10^14 periods; 3 more positions cannot add more than 3.
    before = sequence.counts_before(10**15 + 3)
    assert sum(before) == 10**15 + 3
    assert [count // 10**14 for count in before] == [5, 3, 2]
    state, rank = sequence.locate(10**15 + 3)
    assert rank == before[state]


def test_decimal_weights_are_exact() -> None:
    assert whole_shares([Fraction("0.4"), Fraction("0.3"), Fraction("0.3")]) == (4, 3, 3)


def test_weights_with_a_huge_denominator_come_close() -> None:
    weights = [Fraction(10**12 + 39), Fraction(10**12 + 61), Fraction(3 * 10**11 + 1)]
    counts = whole_shares(weights)

    assert sum(counts) <= LONGEST_PERIOD
    for weight, count in zip(weights, counts, strict=True):
        error = abs(weight / sum(weights) - Fraction(count, sum(counts)))
        assert error < Fraction(1, 10**8)  # one row in a hundred million


def test_a_weight_above_zero_never_becomes_never() -> None:
    counts = whole_shares([Fraction(10**12), Fraction(10**12 + 1), Fraction(2)])

    assert min(counts) >= 1
