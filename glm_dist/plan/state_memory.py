"""Bytes of weights, gradients and optimizer of a rank."""

from dataclasses import dataclass

FP32_BYTES = 4
MOMENTS = 2


@dataclass(frozen=True)
class StateMemory:
    """Bytes on one rank that stay allocated for the whole run."""

    weights: int
    """Parameters in the precision of the model, frozen ones too; under ZeRO 3 this rank's part."""
    gradients: int
    """fp32 sums: whole ones under ZeRO 0 and 1, this rank's part under 2 and 3."""
    optimizer: int
    """Moments, and fp32 master weights if the model is in 16 bits or DeepSpeed's."""
    host: int = 0
    """Offloaded optimizer in the host's memory; not in ``total``."""

    @property
    def total(self) -> int:
        """Sum of the parts on the device."""
        return self.weights + self.gradients + self.optimizer
