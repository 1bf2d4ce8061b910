"""Weight decay groups: all weights decay, except LayerNorm parameters and biases (GLM 4f61ed7)."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Decayable(Protocol):
    """A parameter that knows whether it decays."""

    @property
    def parameter(self) -> torch.nn.Parameter:
        """The tensor to optimise."""

    @property
    def decays(self) -> bool:
        """True if weight decay applies."""


def param_groups(shards: Sequence[Decayable], *, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters by weight decay.

    Args:
        shards: This rank's parameters.
        weight_decay: Decay of the decayed ones.

    Returns:
        The decayed group, then the other; both always present, as ZeRO numbers its shards by group.
    """
    decayed = [shard.parameter for shard in shards if shard.decays]
    others = [shard.parameter for shard in shards if not shard.decays]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
