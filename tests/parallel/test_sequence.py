"""Sequence parallelism: targets come from all ranks, partial gradients are summed."""

from functools import cache

import numpy as np
import torch
import torch.distributed as dist

from glm_dist.parallel.sequence import (
    gather_targets,
    local_rows,
    mark_partial,
    sum_gradients,
    sum_gradients_on_arrival,
)
from tests.ranks import run_ranks

WHOLE = torch.arange(24.0).view(4, 3, 2)  # [s, b, h]; row i of the flattened [s * b, h] is 2i, 2i+1


def gathered(indices: list[list[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Targets on this rank, and the gradient of its rows when target k weighs k + 1."""
    results = []
    for index in indices:
        part = local_rows(WHOLE, dist.group.WORLD).clone().requires_grad_()
        indices = torch.tensor(index, dtype=torch.int64)
        targets = gather_targets(part, indices, group=dist.group.WORLD)
        (targets * torch.arange(1.0, len(index) + 1).unsqueeze(1)).sum().backward()
        results.append((targets.detach().numpy(), part.grad.flatten(0, 1).numpy()))
    return results


@cache
def two_ranks() -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Return what both ranks gather: three targets, then none."""
    return run_ranks(gathered, [[11, 0, 5], []], world_size=2)


def test_every_rank_sees_all_targets_in_order() -> None:
    (first, _), (second, _) = (rank[0] for rank in two_ranks())

    assert first.tolist() == [[22, 23], [0, 1], [10, 11]]
    assert np.array_equal(first, second)


def test_a_rank_keeps_the_gradient_of_its_own_rows() -> None:
    (_, first), (_, second) = (rank[0] for rank in two_ranks())

    # Rank 0 holds rows 0 to 5, rank 1 rows 6 to 11; targets weigh 1, 2, 3 in the order listed.
    assert first.tolist() == [[2, 2], [0, 0], [0, 0], [0, 0], [0, 0], [3, 3]]
    assert second.tolist() == [[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [1, 1]]


def test_a_row_without_targets_gathers_nothing() -> None:
    targets, gradient = two_ranks()[0][1]

    assert targets.shape == (0, 2)
    assert not gradient.any()


def summed() -> list[list[float]]:
    """Two gradients of different shapes, (rank + 1) times 1 and 10."""
    scale = float(dist.get_rank() + 1)
    gradients = [torch.full((2, 1), scale), torch.full((3,), 10 * scale)]
    sum_gradients(gradients, dist.group.WORLD)
    return [gradient.flatten().tolist() for gradient in gradients]


def test_partial_gradients_are_summed_in_place() -> None:
    assert run_ranks(summed, world_size=2) == [[[3.0, 3.0], [30.0, 30.0, 30.0]]] * 2


def summed_on_arrival() -> tuple[float, float]:
    """Gradients of a marked and an unmarked parameter after two backward passes."""
    marked, unmarked = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))
    mark_partial(marked)
    sum_gradients_on_arrival([marked, unmarked], dist.group.WORLD)
    for _ in range(2):
        ((marked + unmarked) * (dist.get_rank() + 1)).backward()
    return float(marked.grad), float(unmarked.grad)


def test_gradients_are_summed_as_they_arrive_where_marked() -> None:
    # Ranks contribute 1 and 2 to each backward; there are two.
    assert run_ranks(summed_on_arrival, world_size=2) == [(6.0, 2.0), (6.0, 4.0)]
