"""Sequence parallelism: outside tensor-parallel layers, a tensor rank keeps its part of every row.

megatron-core's layers gather and scatter the rows; this module does the rest. A replicated
parameter that sees only a part of the rows (norms, biases after a row-parallel product, position
tables) has a partial gradient on each rank; the sum over ranks is the full gradient.

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
    """Create the global state that megatron-core's layers expect under sequence parallelism.

    It is a buffer into which they gather rows, and the random stream that differs between tensor
    ranks; ``rng.seed_step`` reseeds it before each step. Calling twice is harmless.
    """
    if parallel_state._GLOBAL_MEMORY_BUFFER is None:
        parallel_state._set_global_memory_buffer()
    tracker = get_cuda_rng_tracker()
    if _MODEL_PARALLEL_RNG_TRACKER_NAME not in tracker.get_states():
        tracker.add(_MODEL_PARALLEL_RNG_TRACKER_NAME, 0)


def mark_partial(*parameters: torch.Tensor) -> None:
    """Mark parameters with partial gradients, with megatron-core's own attribute."""
    for parameter in parameters:
        parameter.sequence_parallel = True  # type: ignore[attr-defined]


def has_partial_gradient(parameter: torch.nn.Parameter) -> bool:
    """Return True if the gradient must be summed over the tensor ranks."""
    return bool(getattr(parameter, "sequence_parallel", False))


def local_rows(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return this rank's part of [s, ...] as [s/t, ...]."""
    part = tensor.size(0) // group.size()
    return tensor.narrow(0, group.rank() * part, part)


def gather_targets(
    hidden: torch.Tensor, target_index: torch.Tensor, *, group: dist.ProcessGroup
) -> torch.Tensor:
    """Gather the hidden states at the targets from the ranks that hold them.

    The incoming gradient must be complete on every rank; each rank keeps its own rows of it.

    Args:
        hidden: This rank's part of the rows [s/t, b, h].
        target_index: Indices into the whole [s, b] [n].
        group: Ranks that share the rows.

    Returns:
        [n, h] on every rank.
    """
    rows = hidden.flatten(0, 1)  # [s/t * b, h]
    here = target_index // rows.size(0) == group.rank()
    # The remainder is right for own targets; for the others any valid row will do.
    picked = torch.where(here.unsqueeze(1), rows[target_index % rows.size(0)], 0.0)
    gathered: torch.Tensor = reduce_from_tensor_model_parallel_region(picked, group=group)
    return gathered


def sum_gradients(gradients: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Sum partial gradients over the tensor ranks, in place and in one collective.

    Args:
        gradients: Tensors of one dtype, in the same order on every rank.
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
    """Sum each partial gradient inside backward, before any other hook.

    This is one small collective per parameter and micro-batch, for ZeRO stages that reduce
    gradients in backward.

    Args:
        parameters: Parameters; only partial gradients are summed.
        group: Ranks that share the rows.
    """

    def whole(gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.float()
        if total is gradient:
            total = gradient.clone()
        dist.all_reduce(total, group=group)
        return total.to(gradient.dtype)

    for parameter in parameters:
        if has_partial_gradient(parameter) and parameter.requires_grad:
            parameter.register_hook(whole)  # type: ignore[no-untyped-call]
