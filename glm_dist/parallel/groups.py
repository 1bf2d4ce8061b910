"""Process groups of one rank, created once and passed to everything that communicates.

Nothing reads megatron's global ``parallel_state``: every layer, schedule and loss takes its group
as an argument, so two layouts can coexist in one process, as in tests.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from glm_dist.parallel.layout import Coordinates, Layout


@dataclass(frozen=True)
class ParallelGroups:
    """Groups that one rank belongs to."""

    layout: Layout
    rank: int
    coordinates: Coordinates
    tensor: dist.ProcessGroup
    data: dist.ProcessGroup
    pipeline: dist.ProcessGroup
    model: dist.ProcessGroup
    """Tensor and pipeline ranks of one replica."""
    embedding: dist.ProcessGroup
    """Ranks that hold the tied embedding; only this rank on the stages between."""
    self_group: dist.ProcessGroup
    """This rank only, for an axis that is not used."""
    world: dist.ProcessGroup | None
    """Every rank of the job; None is how torch names that group."""

    @property
    def is_first_stage(self) -> bool:
        """True if this rank holds the first stage, which embeds tokens."""
        return self.coordinates.pipeline == 0

    @property
    def is_last_stage(self) -> bool:
        """True if this rank holds the last stage, which computes the loss."""
        return self.coordinates.pipeline == self.layout.pipeline_parallel_size - 1

    @property
    def reports_loss(self) -> bool:
        """True on one rank per replica: first tensor slice of the last stage."""
        return self.is_last_stage and self.coordinates.tensor == 0

    def collection(self) -> ProcessGroupCollection:
        """Return the groups in the form of megatron-core's modules and schedules."""
        collection = ProcessGroupCollection()
        collection.tp = self.tensor
        collection.pp = self.pipeline
        collection.mp = self.model
        collection.cp = self.self_group
        collection.dp = self.data
        collection.dp_cp = self.data
        collection.embd = self.embedding
        collection.pos_embd = None
        return collection


def build_groups(layout: Layout, timeout: timedelta) -> ParallelGroups:
    """Create this rank's groups. Collective over all ranks of the job.

    Args:
        layout: Sizes of the axes; their product is the world size.
        timeout: Time after which a collective on any of these groups fails.
    """
    rank = dist.get_rank()

    def group(ranks: list[int]) -> dist.ProcessGroup:
        # Only the members take part, so a rank of a large job does not create every other rank's
        # groups. torch (2.13) names such a group after its ranks and the number of groups created
        # before, so every rank must create equally many in the same order, needed or not.
        made: dist.ProcessGroup = dist.new_group(
            ranks, timeout=timeout, use_local_synchronization=True
        )
        return made

    coordinates = layout.coordinates(rank)
    stages = layout.pipeline_ranks(rank)
    self_group = group([rank])
    ends = layout.embedding_ranks(rank)
    return ParallelGroups(
        layout=layout,
        rank=rank,
        coordinates=coordinates,
        tensor=group(layout.tensor_ranks(rank)),
        data=group(layout.data_ranks(rank)),
        pipeline=group(stages),
        model=group(layout.model_ranks(rank)),
        embedding=group(ends if rank in ends else [rank]),
        self_group=self_group,
        world=None,
    )
