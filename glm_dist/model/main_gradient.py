"""Main gradients: the fp32 sums in which the micro-batches of a step accumulate.

An optimizer that owns one flat buffer of sums gives each trained parameter its part of it, under
Megatron's name ``main_grad``. Whoever computes a gradient of such a parameter adds it there and
returns none to autograd: there is no 16-bit gradient, no addition of its own, and no rounding
between micro-batches. Parameters without a main gradient get theirs from autograd as usual.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch

MAIN_GRADIENT = "main_grad"
ARRIVED = "gradient_arrived"
"""Attribute for a function that the optimizer wants to be called; see ``arrived``."""


def main_gradient(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return the fp32 sum that belongs to a parameter, of its shape; None if it has none."""
    return getattr(parameter, MAIN_GRADIENT, None)


def arrived(parameter: torch.Tensor) -> None:
    """Tell the optimizer that a micro-batch's gradient was added to the main gradient."""
    listener: Callable[[], None] | None = getattr(parameter, ARRIVED, None)
    if listener is not None:
        listener()


def hand_over(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Add complete gradients to the main gradients, and return those that autograd must take.

    Args:
        parameters: Parameters of one autograd function.
        gradients: Their fp32 gradients of this micro-batch; () if none is needed.
        needed: False for frozen parameters.

    Returns:
        For each parameter its gradient in its own dtype, if it is needed and has no main gradient.
    """
    if not gradients:
        return [None] * len(parameters)
    returned: list[torch.Tensor | None] = []
    sums, added, owners = [], [], []
    for parameter, gradient, is_needed in zip(parameters, gradients, needed, strict=True):
        total = main_gradient(parameter) if is_needed else None
        returned.append(gradient.to(parameter.dtype) if is_needed and total is None else None)
        if total is not None:
            sums.append(total)
            added.append(gradient)
            owners.append(parameter)
    if sums:
        torch._foreach_add_(sums, added)  # one launch
    for parameter in owners:
        arrived(parameter)
    return returned


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left @ right to a sum in place.

    On GPUs with such products the fp32 sum is read and written by the product of 16-bit factors
    itself. Elsewhere that product is rounded to 16 bits before it is added.

    Args:
        total: [m, n] in the dtype of the factors or in fp32.
        left: [m, k].
        right: [k, n].
    """
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)
    elif left.is_cuda and _accumulates_wide(left.device, left.dtype):
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    else:
        total += left @ right


@cache
def _accumulates_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if this torch has products with fp32 sums for 16-bit factors on the device."""
    total = torch.ones(16, 16, device=device)
    factor = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        torch.ops.aten.addmm.dtype_out(total, factor, factor, total.dtype, out=total)
    except (AttributeError, RuntimeError):  # torch before 2.10, or a GPU without them
        return False
    return bool((total == 1 + 16).all())
