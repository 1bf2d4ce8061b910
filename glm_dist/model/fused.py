"""The operations of ``pointwise.py`` as fused kernels, made by torch.compile.

Each operation is an autograd function whose forward and backward are compiled separately:

- Backward is ours, so gradients of norms and biases are fp32 sums that go straight into main
  gradients; compiled autograd would round them to 16 bits first, and the optimizer would add each.
- Forward is one compiled function with and without gradients: hidden states are detached, since
  torch.compile compiles again where ``requires_grad`` differs. So a recomputed segment of at least
  ``FEW_ROWS`` repeats its first run to the bit, and validating or freezing the embedding compiles
  nothing again.
- Dropout is a hash of (seed, index), which costs fewer instructions than torch.compile's Philox and
  keeps no mask. The seed is drawn from torch's generator, whose stream is the right one: equal on
  tensor ranks outside sequence parallelism, and restored by recomputation.

megatron-core's ``bias_gelu_impl`` and ``bias_dropout_add_fused_train`` are not used: they leave the
sum of a bias's gradient to a second, slow kernel, round constants, or know no DeepNorm.

Compiled code is shared by all layers. The second shape of rows compiles code for all shapes; few
rows, as generation has, run one by one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from glm_dist.model.fused_bodies import (
    add_backward,
    add_forward,
    add_norm_backward,
    add_norm_forward,
    compiled,
    drop_backward,
    geglu_backward,
    geglu_forward,
    gelu_backward,
    gelu_forward,
    norm_backward,
    norm_forward,
    sum_forward,
)
from glm_dist.model.main_gradient import hand_over
from glm_dist.model.pointwise import Pointwise

FEW_ROWS = 512
"""Below this many rows the start of a kernel takes longer than the kernel."""


def draw_seed(device: torch.device, dropout: float) -> torch.Tensor | None:
    """Draw the two words of a mask from the device's current stream; None without dropout."""
    if dropout == 0.0:
        return None
    return torch.randint(2**31 - 1, (2,), dtype=torch.int32, device=device)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> torch.Tensor:
        hidden = hidden.detach()
        normed, mean, scale = compiled(norm_forward)(hidden, weight, bias, eps)
        ctx.save_for_backward(hidden, weight, mean, scale)
        ctx.parameters = weight, bias
        return normed  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sums = any(ctx.needs_input_grad[1:3])
        inner, *sums_over_rows = compiled(norm_backward)(gradient, *ctx.saved_tensors, sums)
        of_parameters = hand_over(ctx.parameters, sums_over_rows, ctx.needs_input_grad[1:3])
        return inner, *of_parameters, None


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        bias: torch.Tensor,
        forward: Callable[..., torch.Tensor],
        backward: Callable[..., tuple[torch.Tensor, ...]],
    ) -> torch.Tensor:
        inputs = inputs.detach()
        ctx.save_for_backward(inputs, bias)
        ctx.of_gradient, ctx.parameters = backward, (bias,)
        out: torch.Tensor = compiled(forward)(inputs, bias)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sums = ctx.needs_input_grad[1]
        inner, *of_bias = compiled(ctx.of_gradient)(gradient, *ctx.saved_tensors, sums)
        of_parameters = hand_over(ctx.parameters, of_bias, ctx.needs_input_grad[1:2])
        return inner, *of_parameters, None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        update: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor,
        alpha: float,
        dropout: float,
    ) -> torch.Tensor:
        seed = draw_seed(update.device, dropout)
        ctx.parameters, ctx.rest = (bias,), (seed, alpha, dropout)
        inputs = update.detach(), bias, residual.detach()
        out: torch.Tensor = compiled(add_forward)(*inputs, seed, alpha, dropout)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sums = ctx.needs_input_grad[1]
        seed, alpha, _ = ctx.rest
        if not sums and seed is None and alpha == 1.0:
            return gradient, None, gradient, None, None
        inner, of_residual, *of_bias = compiled(add_backward)(gradient, *ctx.rest, sums)
        (given,) = hand_over(ctx.parameters, of_bias, ctx.needs_input_grad[1:2])
        return inner, given, of_residual, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        update: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        norm_bias: torch.Tensor,
        eps: float,
        alpha: float,
        dropout: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seed = draw_seed(update.device, dropout)
        inputs = update.detach(), bias, residual.detach()
        total, normed, mean, scale = compiled(add_norm_forward)(
            *inputs, weight, norm_bias, seed, eps, alpha, dropout
        )
        ctx.save_for_backward(total, weight, mean, scale)
        ctx.parameters, ctx.rest = (bias, weight, norm_bias), (seed, alpha, dropout)
        ctx.set_materialize_grads(False)  # nobody takes the sum itself if residuals are DeepNorm's
        return total, normed

    @staticmethod
    def backward(
        ctx: Any, of_total: torch.Tensor | None, of_normed: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        total, weight, mean, scale = ctx.saved_tensors
        needs = ctx.needs_input_grad[1], *ctx.needs_input_grad[3:5]
        inner, of_residual, *sums_over_rows = compiled(add_norm_backward)(
            of_total,
            of_normed,
            total,
            weight,
            mean,
            scale,
            *ctx.rest,
            any(needs),
        )
        of_bias, *of_norm = hand_over(ctx.parameters, sums_over_rows, needs)
        return inner, of_bias, of_residual, *of_norm, *(None,) * 3


class _SumAndDrop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dropout: float, *parts: torch.Tensor) -> torch.Tensor:
        seed = draw_seed(parts[0].device, dropout)
        ctx.rest, ctx.num_parts = (seed, dropout), len(parts)
        inputs = [part.detach() for part in parts]
        out: torch.Tensor = compiled(sum_forward)(inputs, seed, dropout)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        seed, _ = ctx.rest
        if seed is not None:
            gradient = compiled(drop_backward)(gradient, *ctx.rest)
        return None, *(gradient,) * ctx.num_parts


class FusedPointwise(Pointwise):
    """The operations as fused kernels; see ``Pointwise`` for their meaning and arguments."""

    is_fused = True

    def layer_norm(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, eps: float
    ) -> torch.Tensor:
        """Normalise the last dim."""
        if _is_small(hidden):
            return super().layer_norm(hidden, weight, bias, eps=eps)
        return _Norm.apply(hidden, weight, bias, eps)  # type: ignore[no-any-return, no-untyped-call]

    def gelu(self, inputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return GELU(inputs + bias) in its tanh form."""
        if _is_small(inputs):
            return super().gelu(inputs, bias)
        return _Activation.apply(inputs, bias, gelu_forward, gelu_backward)  # type: ignore[no-any-return, no-untyped-call]

    def geglu(self, inputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return GELU(gate) x value of inputs + bias = (gate, value)."""
        if _is_small(inputs):
            return super().geglu(inputs, bias)
        return _Activation.apply(inputs, bias, geglu_forward, geglu_backward)  # type: ignore[no-any-return, no-untyped-call]

    def add(
        self,
        update: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor,
        *,
        alpha: float,
        dropout: float,
    ) -> torch.Tensor:
        """Return alpha x residual + dropout(update + bias)."""
        if _is_small(update, dropout):
            return super().add(update, bias, residual, alpha=alpha, dropout=dropout)
        return _Add.apply(update, bias, residual, alpha, dropout)  # type: ignore[no-any-return, no-untyped-call]

    def add_and_norm(
        self,
        update: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor,
        norm: tuple[torch.Tensor, torch.Tensor],
        *,
        eps: float,
        alpha: float,
        dropout: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of ``add`` and its norm, which reads the sum while it is in registers."""
        if _is_small(update, dropout):
            return super().add_and_norm(
                update, bias, residual, norm, eps=eps, alpha=alpha, dropout=dropout
            )
        return _AddNorm.apply(update, bias, residual, *norm, eps, alpha, dropout)  # type: ignore[no-any-return, no-untyped-call]

    def sum_and_drop(self, parts: Sequence[torch.Tensor], *, dropout: float) -> torch.Tensor:
        """Return dropout(sum of the parts)."""
        if _is_small(parts[0], dropout):
            return super().sum_and_drop(parts, dropout=dropout)
        return _SumAndDrop.apply(dropout, *parts)  # type: ignore[no-any-return, no-untyped-call]


def _is_small(inputs: torch.Tensor, dropout: float = 0.0) -> bool:
    """Return True for rows that generation computes, which run one by one.

    Recomputation also has no gradients in its first run, and must drop the same numbers in both.
    """
    if torch.is_grad_enabled() or dropout > 0.0:
        return False
    return inputs.numel() < FEW_ROWS * inputs.size(-1)
