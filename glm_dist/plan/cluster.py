"""The machine that a plan is made for: GPUs, their nodes, and the network between these."""

import math
from dataclasses import dataclass

from glm_dist.parallel.layout import Layout
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

    def exchange_seconds(self, sent: float, *, ranks: int, stride: int) -> float:
        """Estimate a ring collective, in which each rank sends and receives at once.

        Args:
            sent: Bytes that each rank sends.
            ranks: Ranks of the group.
            stride: Distance between neighbours of the group, in ranks of the job.
        """
        if ranks == 1 or sent == 0:
            return 0.0
        return sent / self._bytes_per_second(ranks, stride) + MESSAGE_SECONDS

    def _bytes_per_second(self, ranks: int, stride: int) -> float:
        link = self.gpu.link_gb_per_second * 1e9 * LINK_SHARE
        on_a_node = min(ranks, math.ceil(self.gpus_per_node / stride))
        if on_a_node == ranks:
            return link
        # Members on one node share a ring each, and each has its part of the node's network.
        network = self.network_gb_per_second * 1e9 * NETWORK_SHARE
        return min(on_a_node * network, link)

    def send_seconds(self, size: float, *, stages: int, stride: int) -> float:
        """Estimate a message to the next stage of a pipeline, where it has farthest to go.

        Args:
            size: Bytes.
            stages: Of the pipeline.
            stride: Distance between neighbouring stages, in ranks of the job.
        """
        is_on_a_node = stages * stride <= self.gpus_per_node
        return self.exchange_seconds(
            size, ranks=2, stride=stride if is_on_a_node else max(stride, self.gpus_per_node)
        )


def all_reduced(size: float, ranks: int) -> float:
    """Return the bytes that each rank sends in an all-reduce; half of it in either of its halves.

    Args:
        size: Bytes of the whole tensor.
        ranks: Ranks of the group.
    """
    return 2 * size * (ranks - 1) / ranks


def data_stride(layout: Layout) -> int:
    """Return the distance between replicas."""
    return layout.tensor_parallel_size


def pipeline_stride(layout: Layout) -> int:
    """Return the distance between stages."""
    return layout.tensor_parallel_size * layout.data_parallel_size
