"""Spikes of loss and gradient norm: robust statistics over the steps before. Plain numbers only.

Median and median absolute deviation ignore single outliers, which would blow up a mean and a
variance and hide the next spike. The norm is judged by its logarithm, because healthy norms
scatter by factors.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias, cast

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

_LEAST_LOSS_SIGMA = 0.005
"""Smallest deviation of the loss, as a share of its median: ten of them are 5 %."""

_LEAST_NORM_SIGMA = 0.05
"""Smallest deviation of the norm's logarithm: ten of them are a factor of 1.6."""


@dataclass(frozen=True)
class Spike:
    """A value far above the steps before."""

    what: str
    """``loss`` or ``gradient norm``."""
    value: float
    usual: float
    """Median of the window."""
    deviations: float
    """Distance from it in robust standard deviations."""

    def __str__(self) -> str:
        """Describe it in a line."""
        return (
            f"{self.what}={self.value:.4g} usual={self.usual:.4g} deviations={self.deviations:.1f}"
        )


class SpikeDetector:
    """Judges each step's loss and norm by those of the steps before."""

    def __init__(self, *, window: int, deviations: float) -> None:
        """Begin with an empty window.

        Args:
            window: Steps compared with; nothing is judged until it is full.
            deviations: Distance of a spike from the median, in robust standard deviations.
        """
        self._deviations = deviations
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)

    def judge(self, loss: float, norm: float) -> Spike | None:
        """Judge a step; the window stays as it is.

        Args:
            loss: Finite loss of the step.
            norm: Finite gradient norm before clipping.

        Returns:
            The larger spike of the two; None for a usual step.
        """
        if len(self._losses) < (self._losses.maxlen or 0):
            return None
        centre = median(self._losses)
        loss_distance = (loss - centre) / _sigma(
            self._losses, centre, least=_LEAST_LOSS_SIGMA * abs(centre)
        )
        logarithms = [_log(each) for each in self._norms]
        log_centre = median(logarithms)
        norm_distance = (_log(norm) - log_centre) / _sigma(
            logarithms, log_centre, least=_LEAST_NORM_SIGMA
        )
        spike = (
            Spike("loss", loss, centre, loss_distance)
            if loss_distance >= norm_distance
            else Spike("gradient norm", norm, math.exp(log_centre), norm_distance)
        )
        return spike if spike.deviations > self._deviations else None

    def add(self, loss: float, norm: float) -> None:
        """Add a step to the window; values that are not finite are left out."""
        if math.isfinite(loss) and math.isfinite(norm):
            self._losses.append(loss)
            self._norms.append(norm)

    def state(self) -> dict[str, Json]:
        """Return the window for a checkpoint."""
        return {"losses": list(self._losses), "norms": list(self._norms)}

    def restore(self, state: Mapping[str, Json]) -> None:
        """Continue an earlier window, of any length; empty if there is none."""
        self._losses.clear()
        self._norms.clear()
        self._losses.extend(cast("list[float]", state.get("losses", [])))
        self._norms.extend(cast("list[float]", state.get("norms", [])))


def _sigma(values: "deque[float] | list[float]", centre: float, *, least: float) -> float:
    """Return the robust standard deviation, at least a small positive one."""
    spread = _SIGMA * median(abs(value - centre) for value in values)
    return max(spread, least, 1e-12)


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))
