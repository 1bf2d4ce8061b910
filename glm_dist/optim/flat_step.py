"""A step that the device may still be computing."""

import math
from collections.abc import Callable, Sequence

import torch

from glm_dist.optim.state import StepOutcome
from glm_dist.parallel.exchange import wait_for_device


class FlatStep:
    """Values of a step on their way to the host; see ``PendingStep``."""

    def __init__(
        self,
        norm: torch.Tensor,
        squares: torch.Tensor,
        names: Sequence[str],
        *,
        is_refused: bool,
        is_recoverable: bool,
        settled: Callable[["FlatStep", bool], None],
    ) -> None:
        """Begin to copy the values.

        Args:
            norm: Gradient norm [] in fp64.
            squares: Square of each of this rank's parts [n] in fp64.
            names: Their parameters.
            is_refused: True if the caller refused the update.
            is_recoverable: True if a smaller loss scale may avoid an overflow.
            settled: Called once, with this step and whether its update was applied.
        """
        self.norm = norm
        self._names = names
        self.is_refused, self._is_recoverable = is_refused, is_recoverable
        self._settled = settled
        self._outcome: StepOutcome | None = None
        self._values = torch.cat([norm.view(1), squares]).to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if norm.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    @property
    def is_settled(self) -> bool:
        """True once the outcome is known."""
        return self._outcome is not None

    def settle(self) -> StepOutcome:
        """Wait for the values, count the step, and return its outcome; later calls return it."""
        if self._outcome is not None:
            return self._outcome
        if self._copied is not None:
            wait_for_device(self._copied)
        norm, *squares = self._values.tolist()
        is_finite = math.isfinite(norm)
        is_applied = is_finite and not self.is_refused
        bad = [
            n for n, square in zip(self._names, squares, strict=True) if not math.isfinite(square)
        ]
        self._outcome = StepOutcome(
            self.norm,
            is_skipped=not is_applied,
            is_recoverable=self._is_recoverable,
            is_refused=self.is_refused,
            non_finite=() if self._is_recoverable else tuple(bad),
        )
        self._settled(self, is_applied)
        return self._outcome
