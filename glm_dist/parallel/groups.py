"""The process groups of one rank, made once and passed to whoever communicates.

Nothing reads megatron's global ``parallel_state``: every layer, schedule and loss gets its group as
an argument, so two layouts can live in one process (tests do that).
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
    """Tensor x pipeline: one replica."""
    embedding: dist.ProcessGroup
    """Holders of the tied embedding; just this rank on the stages between."""
    alone: dist.ProcessGroup
    """This rank only; stands for an axis that is not used."""
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
        """The groups in the form that megatron-core's modules and schedules take."""
        collection = ProcessGroupCollection()
        collection.tp = self.tensor
        collection.pp = self.pipeline
        collection.mp = self.model
        collection.cp = self.alone
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
        # Only the members take part: a job of thousands does not create every other rank's groups.
        # torch (2.13) names such a group after its ranks and the number of groups made before, so
        # every rank must make equally many in the same order, needed or not.
        made: dist.ProcessGroup = dist.new_group(
            ranks, timeout=timeout, use_local_synchronization=True
        )
        return made

    coordinates = layout.coordinates(rank)
    stages = layout.pipeline_ranks(rank)
    alone = group([rank])
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
        alone=alone,
        world=None,
    )
