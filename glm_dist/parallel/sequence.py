"""Sequence parallelism: where layers are not sharded, a tensor rank keeps its part of every row.

megatron-core's layers gather and scatter the rows; here is what surrounds them. A parameter that
is replicated but saw only a part of the rows (norms, biases after a row-parallel product, position
tables) has a partial gradient on each rank; the ranks' sum is the whole one.

Shapes: s row length, b micro-batch, h hidden, t tensor ranks, n targets.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import (
    _MODEL_PARALLEL_RNG_TRACKER_NAME,
    get_cuda_rng_tracker,
)


def prepare_process() -> None:
    """Create what megatron-core's layers expect of a process before the first row is cut.

    That is scratch memory into which they gather rows, and the stream of random numbers that
    differs between tensor ranks; ``rng.seed_step`` seeds it anew before each step. Calling twice is
    harmless.
    """
    if parallel_state._GLOBAL_MEMORY_BUFFER is None:
        parallel_state._set_global_memory_buffer()
    tracker = get_cuda_rng_tracker()
    if _MODEL_PARALLEL_RNG_TRACKER_NAME not in tracker.get_states():
        tracker.add(_MODEL_PARALLEL_RNG_TRACKER_NAME, 0)


def mark_partial(*parameters: torch.Tensor) -> None:
    """Say that each rank's gradient comes from its part of the rows; megatron-core's own mark."""
    for parameter in parameters:
        parameter.sequence_parallel = True  # type: ignore[attr-defined]


def has_partial_gradient(parameter: torch.nn.Parameter) -> bool:
    """Return True if the gradient must be summed over the tensor ranks."""
    return bool(getattr(parameter, "sequence_parallel", False))


def local_rows(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's part of [s, ...] as [s/t, ...]."""
    part = tensor.size(0) // group.size()
    return tensor.narrow(0, group.rank() * part, part)


def gather_targets(
    hidden: torch.Tensor, target_index: torch.Tensor, *, group: dist.ProcessGroup
) -> torch.Tensor:
    """Hidden states at the targets, from whichever rank holds them.

    The gradient that comes back must be complete on every rank; each keeps its own rows of it.

    Args:
        hidden: This rank's part of the rows [s/t, b, h].
        target_index: Places in the whole [s, b] [n].
        group: Ranks that share the rows.

    Returns:
        [n, h] on every rank.
    """
    rows = hidden.flatten(0, 1)  # [s/t * b, h]
    here = target_index // rows.size(0) == group.rank()
    # The remainder is right for own targets; for the others it only has to be some valid row.
    picked = torch.where(here.unsqueeze(1), rows[target_index % rows.size(0)], 0.0)
    gathered: torch.Tensor = reduce_from_tensor_model_parallel_region(picked, group=group)
    return gathered


def sum_gradients(gradients: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Sum partial gradients over the tensor ranks, in place and in one collective.

    Args:
        gradients: Of one format, in the same order on every rank.
        group: Ranks that share the rows.
    """
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat, group=group)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, whole in zip(gradients, torch.split(flat, sizes), strict=True):
        gradient.copy_(whole.view_as(gradient))


def sum_gradients_on_arrival(
    parameters: Iterable[torch.nn.Parameter], group: dist.ProcessGroup
) -> None:
    """Sum each partial gradient inside backward, before anyone else sees it.

    One small collective per parameter and micro-batch: for who cannot wait for the step's end.

    Args:
        parameters: Their partial gradients; others are left alone.
        group: Ranks that share the rows.
    """

    def whole(gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.float()
        if total is gradient:
            total = gradient.clone()
        dist.all_reduce(total, group=group)
        return total.to(gradient.dtype)

    for parameter in parameters:
        if has_partial_gradient(parameter):
            parameter.register_hook(whole)  # type: ignore[no-untyped-call]
