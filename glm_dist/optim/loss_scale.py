"""Dynamic loss scale of fp16, with the rules and counters of DeepSpeed's ``DynamicLossScaler``.

A checkpoint of either continues under the other. Plain arithmetic; no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from glm_dist.optim.state import LOSS_SCALER_FIELDS, Number


@dataclass
class DynamicLossScale:
    """A scale that halves after overflows and doubles after steps without one."""

    cur_scale: float
    """Factor of the next step's loss."""
    window: int
    """Steps without overflow before the scale doubles."""
    hysteresis: int
    """Overflows tolerated before the scale halves."""
    min_scale: float
    cur_iter: int = 0
    """Steps so far."""
    last_overflow_iter: int = -1
    cur_hysteresis: int = 0
    """Overflows before the scale halves, less those tolerated since it last doubled; set at the
    start."""

    def __post_init__(self) -> None:
        """Begin with all overflows tolerated."""
        self.cur_hysteresis = self.hysteresis

    @property
    def may_shrink(self) -> bool:
        """True if a smaller scale, or patience, may still avoid the next overflow."""
        is_patient = self.hysteresis > 1 and self.cur_hysteresis > 1
        return is_patient or self.cur_scale > self.min_scale

    def update(self, *, overflowed: bool) -> None:
        """Count a step."""
        if overflowed:
            if self.hysteresis == 1 or self.cur_hysteresis == 1:
                self.cur_scale = max(self.cur_scale / 2.0, self.min_scale)
            else:
                self.cur_hysteresis -= 1
            self.last_overflow_iter = self.cur_iter
        else:
            stable = self.cur_iter - self.last_overflow_iter - 1
            if stable > 0 and stable % self.window == 0:
                self.cur_hysteresis = self.hysteresis
                self.cur_scale *= 2.0
        self.cur_iter += 1

    def state(self) -> dict[str, Number]:
        """Return what a checkpoint stores."""
        return {name: getattr(self, name) for name in LOSS_SCALER_FIELDS}

    def restore(self, values: Mapping[str, Number]) -> None:
        """Continue from what ``state`` returned."""
        for name, value in values.items():
            setattr(self, name, value)
