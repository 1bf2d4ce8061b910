"""Digests of weights, and the rank that differs."""

import torch

from glm_dist.train.replicas import Digests, differing, digests


def test_the_odd_one_of_three_replicas_is_named() -> None:
    def held(rank: int, digest: int) -> Digests:
        return Digests(rank, "host", None, {"a": 1, "b": digest})  # type: ignore[arg-type]

    assert differing([held(0, 5), held(1, 5)]) == ([], "", True)
    assert differing([held(0, 5), held(1, 6), held(2, 5)]) == ([held(1, 6)], "b", True)
    assert differing([held(0, 5), held(1, 6)])[2] is False


def test_one_flipped_bit_changes_a_digest() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.linspace(-1, 1, 1000).to(dtype)
        other = one.clone()
        bits = other.view(torch.int32 if dtype is torch.float32 else torch.int16)
        bits[517] ^= 1
        assert digests([one]).item() != digests([other]).item()
