"""Forward and backward of one step's micro-batches through the pipeline stages.

megatron-core's schedules do the work: no pipelining with one stage, otherwise 1F1B, or interleaved
1F1B if a rank holds several chunks of layers. They run the bare modules, never DeepSpeed's engine,
whose hooks would scale and reduce twice.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import (
    forward_backward_no_pipelining,
    forward_backward_pipelining_with_interleaving,
    forward_backward_pipelining_without_interleaving,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from glm_dist.parallel.groups import ParallelGroups

Batch = TypeVar("Batch")
Input = TypeVar("Input", contravariant=True)


class Stage(Protocol[Input]):
    """Interface of a model chunk that the schedule runs."""

    config: TransformerConfig

    def __call__(self, batch: Input) -> torch.Tensor:
        """Return hidden states [s, b, h]."""


class Result(NamedTuple):
    """Loss and report computed from the last chunk's hidden states."""

    loss: torch.Tensor
    """Tensor on which backward is called []; unscaled."""
    collected: Any
    """Value returned to the caller of the schedule; without a gradient."""


def run_schedule(
    chunks: Sequence[Stage[Batch]],
    batches: Sequence[Batch],
    *,
    finish: Callable[[Any, torch.Tensor, Batch], Result],
    loss_scales: Sequence[torch.Tensor],
    row_length: int,
    micro_batch_size: int,
    groups: ParallelGroups,
    forward_only: bool = False,
) -> list[Any]:
    """Run every micro-batch forward and, unless ``forward_only``, backward.

    Gradients accumulate in the main gradients of the chunks' parameters, or in ``.grad``.

    Args:
        chunks: This rank's part of the model; several only with several stages.
        batches: Micro-batches of this replica, equal on all its ranks; with several chunks a
            multiple of the number of stages.
        finish: Turns the last chunk, its hidden states and the micro-batch into a result.
        loss_scales: Factor [] for each micro-batch's loss before backward.
        row_length: Tokens of a row (s).
        micro_batch_size: Rows of a micro-batch (b).
        groups: This rank's process groups.
        forward_only: Compute no gradients.

    Returns:
        On the last stage, the collected values of all micro-batches; elsewhere an empty list.
    """
    inputs = list(zip(batches, loss_scales, strict=True))
    arguments = {
        "forward_step_func": _forward_step(finish),
        "data_iterator": [iter(inputs) for _ in chunks],
        "model": list(chunks),
        "num_microbatches": len(inputs),
        "seq_length": row_length,
        "micro_batch_size": micro_batch_size,
        "forward_only": forward_only,
        "pg_collection": groups.collection(),
    }
    if groups.layout.pipeline_parallel_size == 1:
        return list(forward_backward_no_pipelining(**arguments))
    schedule = forward_backward_pipelining_without_interleaving
    if len(chunks) > 1:
        schedule = forward_backward_pipelining_with_interleaving
    communicator = P2PCommunicator(pp_group=groups.pipeline, config=chunks[0].config)
    return list(schedule(p2p_communicator=communicator, **arguments))


def _forward_step(finish: Callable[[Any, torch.Tensor, Batch], Result]) -> Callable[..., Any]:
    """Build the function that megatron-core calls for each micro-batch and chunk."""

    def forward_step(iterator: Iterator[tuple[Batch, torch.Tensor]], model: Stage[Batch]) -> Any:
        batch, scale = next(iterator)

        def scaled(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, object]:
            loss, collected = finish(model, hidden, batch)
            # The middle value is megatron's own token count. With calculate_per_token_loss it is
            # not a divisor, so the scale above is the only factor.
            count = torch.zeros([], dtype=torch.int, device=loss.device)
            return loss * scale, count, collected

        return model(batch), scaled

    return forward_step
