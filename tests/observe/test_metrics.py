"""Means weigh what was added since the last record."""

import torch

from glm_dist.observe.metrics import Means


def test_means_are_weighted_by_counts() -> None:
    means = Means()
    means.add("loss", 6.0, weight=2)
    means.add("loss", torch.tensor(3.0), weight=torch.tensor(4))
    means.add("norm", 5.0, weight=1)
    # (6 + 3) / (2 + 4) = 1.5
    assert means.take() == {"loss": 1.5, "norm": 5.0}


def test_taking_starts_anew() -> None:
    means = Means()
    means.add("loss", 6.0, weight=2)
    means.take()
    assert means.take() == {}
    means.add("loss", 1.0, weight=1)
    assert means.take() == {"loss": 1.0}


def test_a_name_that_never_weighed_anything_is_left_out() -> None:
    means = Means()
    means.add("sentence", 0.0, weight=0)
    means.add("span", torch.tensor([2.0]), weight=1)
    assert means.take() == {"span": 2.0}


def test_many_small_values_do_not_lose_digits() -> None:
    means = Means()
    means.add("loss", torch.tensor(2.0**24), weight=1)
    for _ in range(4):
        means.add("loss", torch.tensor(1.0), weight=0)
    # in fp32 2^24 + 1 = 2^24
    assert means.take() == {"loss": 2.0**24 + 4}
