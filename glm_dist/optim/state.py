"""Outcome of an optimizer step, and the optimizer state that survives a restart."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's moments, under torch's names."""

LOSS_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

Number: TypeAlias = bool | int | float


@dataclass(frozen=True)
class StateSlice:
    """The part of one parameter's fp32 state that this rank updates."""

    kind: str
    """``model`` (master weight) or one of ``MOMENTS``."""
    data: torch.Tensor
    """Flat elements [n]; writing to them changes the optimizer."""
    start: int
    """Index of the first element in the rank's flattened local parameter."""


@dataclass(frozen=True)
class OptimizerCounters:
    """Counters of an optimizer that a resumed run restores."""

    updates: int
    """Updates that AdamW has made; fewer than steps if fp16 overflows skipped some."""
    skipped_steps: int
    """Updates that were dropped: fp16 overflows, gradients that were not finite or refused."""
    loss_scaler: Mapping[str, Number] | None
    """State of the dynamic loss scale; None if there is none (fp32, bf16)."""


@dataclass(frozen=True)
class StepOutcome:
    """Result of one optimizer step."""

    norm: torch.Tensor
    """Global gradient norm before clipping []."""
    is_skipped: bool
    """True if nothing was updated: the gradients were not finite, or the caller refused them."""
    is_recoverable: bool
    """True if a smaller loss scale may avoid the next overflow (fp16)."""
    is_refused: bool = False
    """True if the gradients were finite and the caller refused the update."""
    non_finite: tuple[str, ...] = ()
    """Parameters of which this rank saw gradients that are not finite, under their global names;
    empty after an fp16 overflow that a smaller loss scale may avoid."""


@dataclass(frozen=True)
class Rates:
    """Learning rates of a step whose predecessor the device may still be computing."""

    if_applied: float
    """Rate if the previous step's update was applied."""
    if_dropped: float
    """Rate if it was dropped; the same if the outcome is known."""

    @classmethod
    def known(cls, rate: float) -> "Rates":
        """Return the rates of a step whose predecessor is settled."""
        return cls(rate, rate)


class PendingStep(Protocol):
    """A step whose outcome may still be on its way from the device."""

    @property
    def norm(self) -> torch.Tensor:
        """Global gradient norm before clipping [], on the device."""

    @property
    def is_settled(self) -> bool:
        """True if the outcome is known; equal on all ranks."""

    def settle(self) -> StepOutcome:
        """Wait for the device, count the step, and return its outcome.

        Counters, loss scale and weights are up to date afterwards. Later calls return the same.
        """


@dataclass(frozen=True)
class SettledStep:
    """A step whose outcome was known at once."""

    outcome: StepOutcome

    @property
    def norm(self) -> torch.Tensor:
        """See ``PendingStep``."""
        return self.outcome.norm

    @property
    def is_settled(self) -> bool:
        """See ``PendingStep``."""
        return True

    def settle(self) -> StepOutcome:
        """See ``PendingStep``."""
        return self.outcome
