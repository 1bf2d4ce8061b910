"""Intervals of measured numbers: over examples, over seeds, and of differences between two systems.

All are 95 % intervals. Two sources of chance are kept apart: the examples that happen to be in the
file, and the seeds that happened to be trained with. Resampling shows the first. It cannot show the
second, since three seeds hold too few values to draw from: intervals of three resampled seeds cover
85 % instead of 95 %. Student's t has the right width for any number of seeds. Letters: s seeds, n
examples, r resamples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95

Resamples = NDArray[np.int64]
"""Indices of the examples of each resample. [r, n]"""

Floats = NDArray[np.float64]

_AT_A_TIME = 1 << 20
"""Indices of one call of a statistic, for its memory."""


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its 95 % interval; they are NaN where it has none."""

    value: float
    low: float
    high: float

    @property
    def is_separated(self) -> bool:
        """True if the interval, of a difference, lies on one side of zero."""
        return self.low > 0 or self.high < 0

    @property
    def half_width(self) -> float:
        """Half the width; NaN where there is no interval."""
        return (self.high - self.low) / 2

    @classmethod
    def point(cls, value: float) -> Self:
        """Return a number without an interval."""
        return cls(value, math.nan, math.nan)

    def mapped(self, change: Callable[[float], float]) -> "Interval":
        """Return a rising function of the number, such as the perplexity of a loss."""
        return Interval(change(self.value), change(self.low), change(self.high))


def mean_over_examples(values: Sequence[float]) -> Interval:
    """Average values of examples [n], with their bootstrap interval."""
    return ratio_over_examples(values, [1.0] * len(values))


def ratio_over_examples(values: Sequence[float], weights: Sequence[float]) -> Interval:
    """Divide the sum of values by that of their weights, such as losses by tokens.

    Args:
        values: One for each example. [n]
        weights: Each above 0. [n]
    """
    sums, counts = np.array(values, np.float64), np.array(weights, np.float64)
    return bootstrap(
        lambda chosen: sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1), len(sums)
    )


def bootstrap(statistic: Callable[[Resamples], Floats], num_examples: int) -> Interval:
    """Measure a statistic of examples; the percentile bootstrap, with a fixed seed.

    Args:
        statistic: The number of each resample. [r, n] -> [r]
        num_examples: n, at least 1.
    """
    draws = np.random.default_rng(0)
    whole = statistic(np.arange(num_examples)[None])
    if num_examples == 1:
        return Interval.point(float(whole[0]))  # one example does not say how much others differ
    return Interval(float(whole[0]), *_ends(_resampled(statistic, num_examples, draws)))


def over_seeds(values: Sequence[float]) -> Interval:
    """Average what several seeds gave: mean ± t · standard deviation / √s.

    Args:
        values: One for each seed; a single one has no interval. [s]
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval.point(mean)
    half = t_quantile((1 + LEVEL) / 2, len(values) - 1) * _error(np.array(values, np.float64))
    return Interval(mean, mean - half, mean + half)


def paired_difference(differences: Callable[[Resamples], Floats], num_examples: int) -> Interval:
    """Measure how much better one system is than another with the same seeds on the same examples.

    Two levels of chance are drawn together. The examples are resampled, the same ones for every
    seed, and the mean over seeds moves by Student's t with s - 1 degrees of freedom times its
    standard error. A single seed leaves the first level only: the interval then holds for these two
    trained models, not for their settings. It is wider than needed where seeds differ by nothing
    but their examples' noise, never narrower.

    Args:
        differences: The difference that each seed shows on each resample. [r, n] -> [r, s]
        num_examples: n, at least 1.
    """
    draws = np.random.default_rng(0)
    of_seeds = differences(np.arange(num_examples)[None])[0]
    means = _resampled(lambda chosen: differences(chosen).mean(axis=1), num_examples, draws)
    if len(of_seeds) > 1:
        means += draws.standard_t(len(of_seeds) - 1, RESAMPLES) * _error(of_seeds)
    return Interval(float(of_seeds.mean()), *_ends(means))


@lru_cache(maxsize=128)
def t_quantile(probability: float, degrees: int) -> float:
    """Compute the quantile of Student's t.

    Args:
        probability: Share of the distribution below the quantile, from 0.5 up to 1, exclusive.
        degrees: Degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2  # of the angle, in which the distribution is smooth
    for _ in range(60):
        middle = (low + high) / 2
        is_below = (1 + _central_share(middle, degrees)) / 2 < probability
        low, high = (middle, high) if is_below else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _central_share(angle: float, degrees: int) -> float:
    """Share of Student's t between -t and t, for t = √degrees · tan(angle).

    The finite series of whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    power = term = cosine if is_odd else 1.0
    total = power if degrees > 1 else 0.0
    for order in range(2 + is_odd, degrees - 1, 2):
        term *= cosine**2 * (order - 1) / order
        total += term
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


def _resampled(
    statistic: Callable[[Resamples], Floats], num_examples: int, draws: np.random.Generator
) -> Floats:
    """Return the statistic of each of ``RESAMPLES`` resamples [r]; a block of them at a time."""
    block = max(1, _AT_A_TIME // num_examples)
    sizes = [min(block, RESAMPLES - begin) for begin in range(0, RESAMPLES, block)]
    return np.concatenate(
        [statistic(draws.integers(0, num_examples, (size, num_examples))) for size in sizes]
    )


def _error(values: Floats) -> float:
    """Return the standard error of the mean of values [s]."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _ends(resampled: Floats) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
