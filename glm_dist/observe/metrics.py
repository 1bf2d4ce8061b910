"""Names of metrics, and sums that become means when a record is due.

Names are ``area/what`` with the unit in the name where there is one; a dashboard groups by area.
"""

import torch

TRAIN_LOSS = "train/loss"
"""Nats per predicted token, mean over the steps of the record."""
GRAD_NORM = "train/grad_norm"
"""Global norm before clipping, of the record's last step."""
LEARNING_RATE = "train/learning_rate"
TOKENS_PER_SECOND = "speed/tokens_per_second"
"""Positions of all rows of all replicas, padding included."""
TOKENS_PER_SECOND_PER_GPU = "speed/tokens_per_second_per_gpu"
SECONDS_PER_STEP = "speed/seconds_per_step"
ETA_SECONDS = "speed/eta_seconds"
"""Estimated time to the last step."""
WAIT_SHARE = "speed/wait_share_"
"""Prefix: share of step time, 0 to 1, in which training stood still for something."""
PEAK_MEMORY = "memory/peak_gib"
VALID_LOSS = "valid/loss_"
"""Prefix: nats per predicted token of one objective."""


class Means:
    """Weighted means by name, kept as sums on whatever device the values are.

    Adding never waits for an accelerator; ``take`` does, once for all names.
    """

    def __init__(self) -> None:
        """Nothing added yet."""
        self._totals: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}

    def add(self, name: str, total: torch.Tensor | float, *, weight: torch.Tensor | float) -> None:
        """Add a sum of values and the weight (often a count) it stands for.

        Args:
            name: Metric.
            total: Sum of values times weights; a tensor of one element may be on any device.
            weight: Sum of weights, 0 if there were none.
        """
        total = torch.as_tensor(total, dtype=torch.float64).detach().reshape(())
        weight = torch.as_tensor(weight, dtype=torch.float64, device=total.device).detach()
        weight = weight.reshape(())
        self._totals[name] = self._totals[name] + total if name in self._totals else total
        self._weights[name] = self._weights[name] + weight if name in self._weights else weight

    def take(self) -> dict[str, float]:
        """Means since the last call; a name without weight is left out."""
        names = list(self._totals)
        if not names:
            return {}
        devices = {self._totals[name].device for name in names}
        device = max(devices, key=lambda d: d.type != "cpu")
        sums = [torch.stack([self._totals[n], self._weights[n]]).to(device) for n in names]
        means = torch.stack(sums).tolist()
        self._totals.clear()
        self._weights.clear()
        return {n: t / w for n, (t, w) in zip(names, means, strict=True) if w}
