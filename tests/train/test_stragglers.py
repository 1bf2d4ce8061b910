"""Slow ranks are found by their own time, and healthy jobs have none."""

import pytest

from glm_dist.parallel.layout import Layout
from glm_dist.train.stragglers import find_stragglers

REPLICAS = Layout(1, 1, 4)
TWO_SLICES = Layout(2, 1, 2)


@pytest.mark.parametrize(
    ("compute", "slow"),
    [
        ([0.10, 0.13, 0.10, 0.10], {(1,): (0.13, 0.10)}),
        ([0.10, 0.115, 0.10, 0.10], {}),  # 15 % are below the share
        ([0.010, 0.013, 0.010, 0.010], {}),  # 3 ms a step are below the noise
        ([0.10, 0.10, 0.05, 0.10], {}),  # a fast rank is no slow one
    ],
    ids=["30 %", "15 %", "3 ms", "fast"],
)
def test_a_replica_is_compared_with_the_median_of_the_others(
    compute: list[float], slow: dict[tuple[int, ...], tuple[float, float]]
) -> None:
    found = find_stragglers([0.0] * 4, compute, layout=REPLICAS, share=0.2)
    assert found == {ranks: pytest.approx(times) for ranks, times in slow.items()}


def test_of_two_ranks_the_slower_one_is_found() -> None:
    found = find_stragglers([0.0, 0.03], [0.1, 0.1], layout=Layout(1, 1, 2), share=0.2)
    assert list(found) == [(1,)]


def test_ranks_that_share_layers_are_named_together() -> None:
    # Ranks 2 and 3 are replica 1; either of them may be the slow one.
    found = find_stragglers([0.0] * 4, [0.1, 0.1, 0.14, 0.14], layout=TWO_SLICES, share=0.2)
    assert list(found) == [(2, 3)]


def test_a_wait_for_rows_belongs_to_one_rank_in_every_layout() -> None:
    found = find_stragglers([0.0, 0.0, 0.0, 0.05], [0.1] * 4, layout=TWO_SLICES, share=0.2)
    assert list(found) == [(3,)]
