"""Work on a list, shared out over the replicas of a job."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from glm_dist.parallel.groups import ParallelGroups

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def over_replicas(
    groups: ParallelGroups,
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Iterable[Outcome]],
) -> list[Outcome]:
    """Work on a list, each replica on its share. Collective over all ranks.

    Args:
        groups: This rank's process groups.
        items: The same on all ranks.
        work: Gives an outcome for each item, in order; collective over a replica.

    Returns:
        Outcomes of all items, in order, on every rank.
    """
    replicas, own = groups.layout.data_parallel_size, groups.coordinates.data
    mine = items[own::replicas]
    found = list(work(mine)) if mine else []
    if replicas == 1:
        return found
    shares: list[Any] = [None] * replicas
    dist.all_gather_object(shares, found, group=groups.data)
    return [shares[n % replicas][n // replicas] for n in range(len(items))]


def from_first_rank(groups: ParallelGroups, value: Item) -> Item:
    """Return the value of rank 0 on every rank. Collective over all ranks."""
    if dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=groups.world)
    return box[0]
