"""The keyed permutation visits everything once and looks random."""

import numpy as np
import pytest

from glm_dist.data.sampling.permutation import KeyedPermutation
from glm_dist.seeds import derive_keys


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
