"""Process groups of real ranks."""

from datetime import timedelta

import torch
import torch.distributed as dist

from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from tests.ranks import run_ranks


def sums_of_ranks() -> list[tuple[int, int, int, int, int]]:
    """Sum of the ranks in each group this rank belongs to, for one layout after another."""
    found = []
    for layout in (Layout(1, 4, 1), Layout(2, 2, 1), Layout(1, 1, 4)):
        groups = build_groups(layout, timedelta(seconds=60))
        sums = []
        for group in (
            groups.tensor,
            groups.data,
            groups.pipeline,
            groups.model,
            groups.embedding,
        ):
            total = torch.tensor(dist.get_rank())
            dist.all_reduce(total, group=group)
            sums.append(int(total))
        found.append(tuple(sums))
    return found


def test_groups_reach_exactly_their_ranks() -> None:
    by_rank = run_ranks(sums_of_ranks, world_size=4)

    # tensor, data, pipeline, model, embedding
    assert [found[0] for found in by_rank] == [
        (0, 0, 6, 6, 3),  # pp4: rank 0 and 3 hold the embedding
        (1, 1, 6, 6, 1),
        (2, 2, 6, 6, 2),
        (3, 3, 6, 6, 3),
    ]
    assert [found[1] for found in by_rank] == [
        (1, 0, 2, 6, 2),  # tp2 pp2: slices 01 and 23, stages 02 and 13
        (1, 1, 4, 6, 4),
        (5, 2, 2, 6, 2),
        (5, 3, 4, 6, 4),
    ]
    assert [found[2] for found in by_rank] == [(r, 6, r, r, r) for r in range(4)]
