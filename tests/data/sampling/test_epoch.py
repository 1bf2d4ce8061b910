"""Slots tile the ring, and the keyed permutation visits each once in an order that looks random."""

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from glm_dist.data.corpus.indexed import write_documents
from glm_dist.data.objectives.mixture import Mixture
from glm_dist.data.sampling.epoch import KeyedPermutation, SlotPlan
from glm_dist.data.sampling.mixing import MOST_ROWS_OFF
from glm_dist.seeds import derive_keys
from tests.data.corpora import CLS, EOS, open_source
from tests.data.restore import restored


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 64, 97, 1000, 4096, 10_007])
def test_every_place_is_visited_once(size: int) -> None:
    order = KeyedPermutation(size, derive_keys("test", size))

    assert sorted(order(index) for index in range(size)) == list(range(size))


def test_other_keys_give_another_order() -> None:
    first, second = (KeyedPermutation(1000, derive_keys(7, epoch)) for epoch in (0, 1))
    same = sum(first(index) == second(index) for index in range(1000))

    # Two random orders agree in one place on average; 8 or more happens once in 100 000.
    assert same < 8


def test_order_is_uniform_over_many_keys() -> None:
    # Where does index 3 of 8 go, over 8000 keys: 1000 times each place.
    counts = np.zeros(8)
    for key in range(8000):
        counts[KeyedPermutation(8, derive_keys(key))(3)] += 1
    chi_square = ((counts - 1000) ** 2 / 1000).sum()

    # 99.9 % quantile of chi-square with 7 degrees of freedom is 24.3.
    assert chi_square < 24.3


def test_neighbours_go_to_unrelated_places() -> None:
    order = KeyedPermutation(1_000_003, derive_keys("neighbours"))
    places = np.array([order(index) for index in range(20_000)], np.float64)
    correlation = np.corrcoef(places[:-1], places[1:])[0, 1]

    assert abs(correlation) < 0.03
    assert abs(places.mean() / 1_000_003 - 0.5) < 0.01


def test_a_trillion_places_need_no_table() -> None:
    order = KeyedPermutation(10**12, derive_keys("large"))
    places = {order(index) for index in range(1000)}

    assert len(places) == 1000
    assert max(places) < 10**12


class Window(NamedTuple):
    """As much of an objective as a plan of slots asks for."""

    window_length: int


@pytest.mark.parametrize("num_tokens", [1, 99, 100, 101, 149, 150, 151, 7919, 100_000])
def test_slots_of_any_objectives_tile_the_ring(num_tokens: int) -> None:
    objectives = tuple(Window(length) for length in (101, 51, 30, 8))
    shares = tuple(Fraction(share) for share in ("0.5", "0.3", "0.19", "0.01"))
    plan = SlotPlan(Mixture(cast(Any, objectives), shares), num_tokens)
    end, counts = 0, [0] * 4
    for number in range(plan.num_slots):
        objective, begin, length = plan.slot(number)
        assert begin == end
        end += length
        counts[objective] += 1
        is_last = number == plan.num_slots - 1
        longest = min(objectives[objective].window_length - 1, num_tokens)
        assert 0 < length <= longest
        assert is_last or length == longest

    assert end == plan.passes * num_tokens
    assert (plan.passes > 1) == (num_tokens < 4000)
    assert plan.num_slots >= 64
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - plan.num_slots * share) <= 1.25  # four objectives


def test_a_plan_of_one_objective_is_a_division() -> None:
    plan = SlotPlan(Mixture(cast(Any, (Window(1001),)), (Fraction(1),)), 10**15 + 7)

    assert plan.num_slots == 10**12 + 1
    assert plan.slot(123_456_789) == (0, 123_456_789_000, 1000)
    assert plan.slot(10**12) == (0, 10**15, 7)


def test_a_small_corpus_gives_every_objective_its_share_over_passes(folder: Path) -> None:
    prefix = folder / "small"
    write_documents(
        prefix, [[CLS, *range(10 * n, 10 * n + 7), EOS] for n in (1, 2, 3)], np.dtype(np.uint16)
    )
    source = open_source(folder, "small", validation_share=0.0, test_share=0.0, row_length=128)
    (part,) = source.blend()
    rows = [source.row(number) for number in range(part.rows_per_round)]

    tokens = Counter(token for row in rows for token in restored(row) if 10 <= token < 40)
    words = [token for n in (1, 2, 3) for token in range(10 * n, 10 * n + 7)]
    assert tokens == dict.fromkeys(words, part.passes_per_round)
    objectives = Counter(row.objective for row in rows)
    for objective, share in (("span", 0.5), ("sentence", 0.3), ("document", 0.2)):
        assert objectives[objective] == pytest.approx(share * len(rows), abs=MOST_ROWS_OFF)
    assert part.epochs(len(rows)) == part.passes_per_round
    assert part.padding == pytest.approx(1 - 27 / 125, abs=0.02)
    assert source.fingerprint()["row_rule"] == 3
    assert open_source(folder, "news").fingerprint()["row_rule"] == 2
