"""Forward and backward of one step's micro-batches through the pipeline stages.

megatron-core's schedules do the work: without pipelining when there is one stage, else 1F1B. They
are given the bare module, never DeepSpeed's engine, whose hooks would scale and reduce twice.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import (
    forward_backward_no_pipelining,
    forward_backward_pipelining_without_interleaving,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from glm_dist.parallel.groups import ParallelGroups

Batch = TypeVar("Batch", contravariant=True)


class Stage(Protocol[Batch]):
    """What the schedule needs of a model stage."""

    config: TransformerConfig

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Hidden states [s, b, h], or on the last stage the sum of losses []."""


def run_schedule(
    stage: Stage[Batch],
    batches: Sequence[Batch],
    *,
    loss_scales: Sequence[torch.Tensor],
    row_length: int,
    micro_batch_size: int,
    groups: ParallelGroups,
    forward_only: bool = False,
) -> list[torch.Tensor]:
    """Run every micro-batch forward and, unless told not to, backward.

    Gradients are added to ``.grad`` of the stage's parameters.

    Args:
        stage: This rank's part of the model.
        batches: Micro-batches of this replica, equal on all its ranks.
        loss_scales: Factor [] for each micro-batch's summed loss before backward.
        row_length: Tokens of a row (s).
        micro_batch_size: Rows of a micro-batch (b).
        groups: This rank's process groups.
        forward_only: Leave gradients alone.

    Returns:
        On the last stage the summed loss [] of each micro-batch, unscaled and detached; elsewhere
        an empty list.
    """
    scales = iter(loss_scales)

    def forward_step(
        iterator: Iterator[Batch], model: Stage[Batch]
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, object]]]:
        scale = next(scales)

        def scaled(loss_sum: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, object]:
            # The middle value is megatron's own token count; with calculate_per_token_loss it
            # divides by nothing, so the scale above is the only factor.
            count = torch.zeros([], dtype=torch.int, device=loss_sum.device)
            return loss_sum * scale, count, loss_sum.detach()

        return model(next(iterator)), scaled

    arguments = {
        "forward_step_func": forward_step,
        "data_iterator": iter(batches),
        "model": [stage],
        "num_microbatches": len(batches),
        "seq_length": row_length,
        "micro_batch_size": micro_batch_size,
        "forward_only": forward_only,
        "pg_collection": groups.collection(),
    }
    if groups.layout.pipeline_parallel_size == 1:
        return list(forward_backward_no_pipelining(**arguments))
    communicator = P2PCommunicator(pp_group=groups.pipeline, config=stage.config)
    return list(
        forward_backward_pipelining_without_interleaving(p2p_communicator=communicator, **arguments)
    )
