"""The machine that a plan is made for: GPUs, their nodes, and the network between these."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from glm_dist.plan.gpus import Gpu

LINK_SHARE = 0.75
"""Share of a link's peak that NCCL's large collectives reach: nccl-tests report 330 to 370 of 450
GB/s on nodes of 8 H100."""
NETWORK_SHARE = 0.85
"""The same for a network; InfiniBand loses little more than its headers."""
MESSAGE_SECONDS = 15e-6
"""Time until the first byte of a collective or a send arrives: launch and synchronization."""


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal GPUs."""

    gpu: Gpu
    gpus_per_node: int
    network_gb_per_second: float
    """Bandwidth of a node's network per GPU, one direction, in 10^9 bytes per second."""

    def exchange_seconds(self, sent: float, *, ranks: int, stride: int, world_size: int) -> float:
        """Estimate a ring collective of all groups at once; each rank sends and receives at once.

        Args:
            sent: Bytes that each rank sends.
            ranks: Ranks of a group.
            stride: Distance between neighbours of a group, in ranks of the job.
            world_size: Ranks of the job.
        """
        if ranks == 1 or sent == 0:
            return 0.0
        fewest = _fewest_on_a_node(ranks, stride, world_size, self.gpus_per_node)
        return sent / self._bytes_per_second(fewest, ranks) + MESSAGE_SECONDS

    def _bytes_per_second(self, fewest: int, ranks: int) -> float:
        link = self.gpu.link_gb_per_second * 1e9 * LINK_SHARE
        if fewest == ranks:
            return link
        # Members on one node share a ring each, and each has its part of the node's network.
        network = self.network_gb_per_second * 1e9 * NETWORK_SHARE
        return min(fewest * network, link)

    def send_seconds(self, size: float, *, world_size: int) -> float:
        """Estimate a message between stages of a pipeline, where it has farthest to go.

        Args:
            size: Bytes.
            world_size: Ranks of the job; if one node cannot hold them, some neighbours are on two.
        """
        fewest = 2 if world_size <= self.gpus_per_node else 1
        return size / self._bytes_per_second(fewest, 2) + MESSAGE_SECONDS


@lru_cache(maxsize=4096)
def _fewest_on_a_node(ranks: int, stride: int, world_size: int, gpus_per_node: int) -> int:
    """Count the members of a group on the node that has fewest of them; the least of all groups.

    Groups need not end with their nodes: with 3 stages of 4 replicas on nodes of 6, the second
    stage has two replicas on either of them.

    Args:
        ranks: Ranks of a group.
        stride: Distance between neighbours; as many groups interleave.
        world_size: Ranks of the job.
        gpus_per_node: GPUs of a node.
    """
    block = ranks * stride
    return min(
        min(Counter(rank // gpus_per_node for rank in range(first, begin + block, stride)).values())
        for begin in range(0, world_size, block)
        for first in range(begin, begin + stride)
    )


def all_reduced(size: float, ranks: int) -> float:
    """Return the bytes that each rank sends in an all-reduce; half of it in either of its halves.

    Args:
        size: Bytes of the whole tensor.
        ranks: Ranks of the group.
    """
    return 2 * size * (ranks - 1) / ranks
