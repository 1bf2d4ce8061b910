"""Every draw has a name, and the same name gives the same numbers."""

import pickle

import numpy as np
import pytest
from numpy.random import Generator, Philox

from glm_dist.data.sampling.randomness import (
    Purpose,
    RowGenerators,
    draw_below,
)


def test_a_row_draws_what_a_fresh_philox_at_its_place_draws() -> None:
    generators = RowGenerators(77, Purpose.TRAINING_ROW)
    generators.at(corpus=1, epoch=2, slot=3).random(13)
    again = generators.at(corpus=5, epoch=6, slot=7).random(9)
    fresh = Generator(Philox(key=[77, 1], counter=[0, 7, 6, 5])).random(9)

    assert (again == fresh).all()


def test_places_and_purposes_are_independent() -> None:
    draws = []
    for purpose in (Purpose.TRAINING_ROW, Purpose.VALIDATION_ROW):
        generators = RowGenerators(1, purpose)
        for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
            corpus, epoch, slot = place
            draws.append(generators.at(corpus=corpus, epoch=epoch, slot=slot).random(2000))
    table = np.corrcoef(np.array(draws))

    # Eight sequences of 2000: correlations have standard deviation 0.022.
    assert np.abs(table - np.eye(8)).max() < 0.11


def test_generators_survive_the_way_into_a_worker() -> None:
    generators = pickle.loads(pickle.dumps(RowGenerators(2**63 + 5, Purpose.SURVEY)))
    fresh = RowGenerators(2**63 + 5, Purpose.SURVEY)

    assert generators.at(corpus=1, epoch=1, slot=1).random() == (
        fresh.at(corpus=1, epoch=1, slot=1).random()
    )


def test_bounded_draws_are_uniform() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount([draw_below(rng, 7) for _ in range(7000)], minlength=7)

    assert len(counts) == 7
    # 99.9 % quantile of chi-square with 6 degrees of freedom is 22.5.
    assert ((counts - 1000) ** 2 / 1000).sum() < 22.5


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_any_seed_of_64_bits_will_do(seed: int) -> None:
    draw = RowGenerators(seed, Purpose.SURVEY).at(corpus=0, epoch=0, slot=0).random()
    near = RowGenerators(seed ^ 1, Purpose.SURVEY).at(corpus=0, epoch=0, slot=0).random()

    assert 0 <= draw < 1
    assert draw != near
