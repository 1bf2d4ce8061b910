"""Weight decay groups: all weights decay, except LayerNorm parameters and biases (GLM 4f61ed7)."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Decayable(Protocol):
    """A parameter that knows whether it decays and learns."""

    @property
    def parameter(self) -> torch.nn.Parameter:
        """The tensor to optimise."""

    @property
    def decays(self) -> bool:
        """True if weight decay applies."""

    @property
    def is_trained(self) -> bool:
        """False if it is frozen."""


def param_groups(shards: Sequence[Decayable], *, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters that learn by weight decay.

    Args:
        shards: This rank's parameters.
        weight_decay: Decay of the decayed ones.

    Returns:
        The decayed group, then the other; both always present, as ZeRO numbers its shards by group.
    """
    trained = [shard for shard in shards if shard.is_trained]
    return [
        {
            "params": [shard.parameter for shard in trained if shard.decays],
            "weight_decay": weight_decay,
        },
        {
            "params": [shard.parameter for shard in trained if not shard.decays],
            "weight_decay": 0.0,
        },
    ]
