"""Dropout streams: functions of seed, step and coordinates only."""

import torch

from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.layout import Coordinates
from glm_dist.parallel.rng import get_cuda_rng_tracker, seed_step


def draws(step: int, *, tensor: int = 0, data: int = 0, pipeline: int = 0) -> tuple[float, float]:
    """First number of the shared and of the sharded stream at a step."""
    enable_cpu()
    seed_step(1, step, coordinates=Coordinates(tensor=tensor, data=data, pipeline=pipeline))
    shared = float(torch.rand(()))
    with get_cuda_rng_tracker().fork():
        return shared, float(torch.rand(()))


def test_a_step_draws_the_same_whatever_happened_before() -> None:
    first = draws(5)
    torch.rand(100)
    draws(4)

    assert draws(5) == first


def test_slices_share_one_stream_and_differ_in_the_other() -> None:
    (shared_0, sharded_0), (shared_1, sharded_1) = draws(5, tensor=0), draws(5, tensor=1)

    assert shared_0 == shared_1
    assert sharded_0 != sharded_1


def test_steps_replicas_and_stages_draw_differently() -> None:
    streams = [draws(5), draws(6), draws(5, data=1), draws(5, pipeline=1)]

    assert len({shared for shared, _ in streams}) == 4
    assert len({sharded for _, sharded in streams}) == 4
