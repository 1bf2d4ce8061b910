"""Linear layers split over tensor ranks, whose gradients go straight into main gradients.

Sharding, slots and the collectives of forward are megatron-core's. The product is our own: it adds
the bias itself, and in backward it adds the weight's gradient to the fp32 sum itself. Any of
weight, bias and input may be frozen. As in megatron-core, the collective of the input's gradient
runs while the weight's gradient is computed.

Shapes: s row length, b micro-batch, i inputs and o outputs of this rank, t tensor ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.parallel_state import get_global_memory_buffer
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from glm_dist.model.main_gradient import add_product, arrived, main_gradient
from glm_dist.parallel.exchange import wait_for


class ColumnLinear(ColumnParallelLinear):  # type: ignore[misc]
    """A column-parallel layer: each tensor rank has some of the outputs."""

    def _forward_impl(self, **arguments: Any) -> torch.Tensor:
        return _product(super()._forward_impl, **arguments)


class RowLinear(RowParallelLinear):  # type: ignore[misc]
    """A row-parallel layer: each tensor rank has some of the inputs, and the products are summed.

    The bias is added once, after the sum; megatron-core does that outside the product.
    """

    def _forward_impl(self, **arguments: Any) -> torch.Tensor:
        return _product(super()._forward_impl, **arguments)


def _product(
    traceable: Any,
    *,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    tp_group: dist.ProcessGroup | None,
    **options: Any,
) -> torch.Tensor:
    """Compute megatron-core's ``_forward_impl``.

    Args:
        traceable: megatron-core's own, for ``torch.compile``, which cannot trace a write to a main
            gradient; the gradients then come through autograd.
        input: [s, b, i], or this rank's part of the rows [s/t, b, i].
        weight: [o, i].
        bias: [o]; None if there is none, or if it is added later.
        allreduce_dgrad: Sum the input's gradient over the group.
        sequence_parallel: The input is a part of the rows; gather them.
        tp_group: Ranks that share the layer; None where nothing is communicated.
        **options: megatron-core's further ones.

    Returns:
        [s, b, o].
    """
    if torch.compiler.is_compiling():
        # megatron-core (0.16) drops the gradient of a bias whose weight is frozen.
        added = None if bias is None or weight.requires_grad else bias
        output: torch.Tensor = traceable(
            input=input,
            weight=weight,
            bias=bias if added is None else None,
            allreduce_dgrad=allreduce_dgrad,
            sequence_parallel=sequence_parallel,
            tp_group=tp_group,
            **options,
        )
        return output if added is None else output + added
    product: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
        input, weight, bias, allreduce_dgrad, sequence_parallel, tp_group
    )
    return product


class _Product(torch.autograd.Function):
    """x W^T + b; see ``_product``."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        sums_input_gradient: bool,
        splits_rows: bool,
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(rows if needs_weight else None, weight if needs_input else None)
        # The parameters themselves: their main gradients are attributes.
        ctx.weight, ctx.bias = weight if needs_weight else None, bias
        ctx.sums_input_gradient, ctx.splits_rows = sums_input_gradient, splits_rows
        ctx.group = group
        if splits_rows:
            rows, gathering = _begin_gather(rows, group)
            wait_for(gathering)
        # Not a view of the product, which autograd would let nobody change in place.
        output = rows.new_empty(*rows.shape[:-1], weight.size(0))
        flat, product = rows.flatten(0, -2), output.flatten(0, -2)  # [s * b, i], [s * b, o]
        if bias is None:
            torch.mm(flat, weight.t(), out=product)
        else:
            torch.addmm(bias, flat, weight.t(), out=product)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        flat = gradient.flatten(0, -2)  # [s * b, o]
        gathering = None
        if needs_weight and ctx.splits_rows:
            rows, gathering = _begin_gather(rows, ctx.group)
        input_gradient = sending = None
        if needs_input:
            input_gradient = (flat @ weight).view(*gradient.shape[:-1], -1)
        if gathering is not None:
            wait_for(gathering)
        if input_gradient is not None:
            input_gradient, sending = _begin_sum(input_gradient, ctx)
        weight_gradient = bias_gradient = None
        if needs_weight:
            weight_gradient = _add_weight_gradient(ctx.weight, flat, rows.flatten(0, -2))
        if needs_bias:
            bias_gradient = _add_bias_gradient(ctx.bias, flat)
        if sending is not None:
            wait_for(sending)
        return input_gradient, weight_gradient, bias_gradient, None, None, None


def _begin_gather(rows: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, dist.Work]:
    """Gather [s/t, b, i] as [s, b, i] in memory that the next gather overwrites."""
    shape = [rows.size(0) * group.size(), *rows.shape[1:]]
    whole = get_global_memory_buffer().get_tensor(shape, rows.dtype, "mpu")
    work = dist.all_gather_into_tensor(whole, rows.contiguous(), group=group, async_op=True)
    return whole, work


def _begin_sum(gradient: torch.Tensor, ctx: Any) -> tuple[torch.Tensor, dist.Work | None]:
    """Sum an input's gradient [s, b, i] over tensor ranks; each keeps its part of split rows."""
    if ctx.sums_input_gradient:
        return gradient, dist.all_reduce(gradient, group=ctx.group, async_op=True)
    if not ctx.splits_rows:
        return gradient, None
    part = gradient.new_empty(gradient.size(0) // ctx.group.size(), *gradient.shape[1:])
    work = dist.reduce_scatter_tensor(part, gradient, group=ctx.group, async_op=True)
    return part, work


def _add_weight_gradient(
    weight: torch.Tensor, gradient: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor | None:
    """Add g^T x [o, i] to the main gradient, or return it if there is none."""
    total = main_gradient(weight)
    if total is None:
        return gradient.t() @ rows
    add_product(total, gradient.t(), rows)
    arrived(weight)
    return None


def _add_bias_gradient(bias: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor | None:
    """Add the sum over rows [o] to the main gradient, or return it if there is none."""
    total = main_gradient(bias)
    if total is None:
        return gradient.sum(dim=0)
    total += gradient.sum(dim=0, dtype=total.dtype)
    arrived(bias)
    return None
