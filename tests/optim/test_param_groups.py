"""Weight decay groups."""

from dataclasses import dataclass

import torch

from glm_dist.optim.param_groups import param_groups


@dataclass(frozen=True)
class Parameter:
    """A parameter with a name for the test's sake."""

    parameter: torch.nn.Parameter
    decays: bool
    is_trained: bool = True


def test_biases_and_norms_do_not_decay_and_frozen_ones_are_left_out() -> None:
    weight = Parameter(torch.nn.Parameter(torch.ones(2, 2)), decays=True)
    bias = Parameter(torch.nn.Parameter(torch.ones(2)), decays=False)
    frozen = Parameter(torch.nn.Parameter(torch.ones(2)), decays=True, is_trained=False)

    decayed, others = param_groups([bias, frozen, weight], weight_decay=0.1)

    assert decayed == {"params": [weight.parameter], "weight_decay": 0.1}
    assert others == {"params": [bias.parameter], "weight_decay": 0.0}
