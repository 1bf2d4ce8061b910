"""Intervals against tables, closed forms and simulated experiments whose truth is known."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from glm_dist.tasks.intervals import (
    Floats,
    Resamples,
    bootstrap,
    mean_over_examples,
    over_seeds,
    paired_difference,
    t_quantile,
)


# Abramowitz and Stegun, table 26.10; 1 and 2 degrees have closed forms.
@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    [
        (0.975, 1, math.tan(math.pi * 0.475)),
        (0.975, 2, 0.95 * math.sqrt(2 / (1 - 0.95**2))),
        (0.975, 3, 3.182),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.995, 7, 3.499),
        (0.95, 30, 1.697),
        (0.975, 120, 1.980),
        (0.5, 5, 0.0),
    ],
)
def test_t_quantiles_are_those_of_the_tables(
    probability: float, degrees: int, expected: float
) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize("degrees", [3, 4, 11])
def test_t_quantile_bounds_the_integral_of_the_density(degrees: int) -> None:
    end = t_quantile(0.975, degrees)
    scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2)
    points = np.linspace(0.0, end, 20_001)
    density = scale * (1 + points**2 / degrees) ** (-(degrees + 1) / 2)
    area = np.trapezoid(density / math.sqrt(degrees * math.pi), points)
    assert area == pytest.approx(0.475, abs=1e-9)


def test_mean_over_seeds_has_the_interval_of_students_t() -> None:
    # Deviations -1, 0, 1: standard deviation 1, standard error 1 / sqrt(3).
    found = over_seeds([4.0, 5.0, 6.0])
    half = 4.302653 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((5, 5 - half, 5 + half), abs=1e-5)
    alone = over_seeds([4.0])
    assert alone.value == 4.0
    assert math.isnan(alone.low)
    assert not alone.is_separated


def test_bootstrap_of_a_mean_has_the_width_of_the_binomial() -> None:
    right = np.repeat([1.0, 0.0], [700, 300])
    found = bootstrap(lambda chosen: right[chosen].mean(axis=1), 1000)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert found.value == pytest.approx(0.7)
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.004)
    again = bootstrap(lambda chosen: right[chosen].mean(axis=1), 1000)
    assert again == found


def _means(differences: Floats) -> Callable[[Resamples], Floats]:
    """Mean of each resample for each seed, of differences [s, n]. [r, n] -> [r, s]"""
    return lambda chosen: differences[:, chosen].mean(axis=2).T


def _mean_of(values: Floats) -> Callable[[Resamples], Floats]:
    return lambda chosen: _means(values)(chosen).mean(axis=1)


def test_one_example_has_no_interval() -> None:
    found = mean_over_examples([1.0])
    assert found.value == 1.0
    assert math.isnan(found.half_width)


def test_difference_of_seeds_that_agree_has_the_interval_of_examples() -> None:
    # Differences of 200 examples, the same for each of 3 seeds: only the examples are by chance.
    each = np.repeat([1.0, 0.0, -1.0], [60, 100, 40])
    half = 1.96 * math.sqrt((0.5 - 0.1**2) / 200)
    found = paired_difference(_means(np.tile(each, (3, 1))), 200)
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.01)
    assert found.is_separated


def test_difference_of_examples_that_agree_has_the_interval_of_seeds() -> None:
    # Only the seeds are by chance: 0.00, 0.05, 0.10, as ``over_seeds`` has it.
    each = np.repeat([[0.0], [0.05], [0.1]], 200, axis=1)
    half = 4.302653 * 0.05 / math.sqrt(3)
    found = paired_difference(_means(each), 200)
    assert found.value == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.02)
    assert not found.is_separated


def test_pairs_show_a_difference_that_two_separate_intervals_hide() -> None:
    rng = np.random.default_rng(5)
    first = (rng.random((3, 400)) < rng.random(400)).astype(float)
    second = np.where(rng.random((3, 400)) < 0.1, 1.0, first)
    found = paired_difference(_means(second - first), 400)
    ends = [bootstrap(_mean_of(system), 400) for system in (first, second)]
    assert ends[1].low < ends[0].high
    assert found.is_separated


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_examples", "of_both"),
    [(0.03, 0.0, 0.2), (0.01, 0.3, 0.3), (0.0, 0.5, 0.2)],
    ids=["seeds", "mixed", "examples"],
)
def test_differences_cover_the_truth(
    num_seeds: int, of_seeds: float, of_examples: float, of_both: float
) -> None:
    rng = np.random.default_rng(7)
    trials, truth, covered = 150, 0.1, 0
    for _ in range(trials):
        each = truth + rng.normal(0, of_examples, (1, 200)) + rng.normal(0, of_both, (1, 200))
        each = np.repeat(each, num_seeds, axis=0) + rng.normal(0, of_both, (num_seeds, 200))
        if num_seeds > 1:  # one seed promises nothing about others
            each += rng.normal(0, of_seeds, (num_seeds, 1))
        found = paired_difference(_means(each), 200)
        covered += found.low <= truth <= found.high
    # 0.95 - 2.5 standard errors of 150 trials
    assert covered / trials >= 0.905
