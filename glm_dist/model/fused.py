"""The operations of ``pointwise.py`` as fused kernels, made by torch.compile.

Each operation is an autograd function whose forward and backward are compiled separately:

- Backward is ours, so gradients of norms and biases are fp32 sums that go straight into main
  gradients; compiled autograd would round them to 16 bits first, and the optimizer would add each.
- Forward is one compiled function with and without gradients. So a recomputed segment repeats its
  first run to the bit, and freezing parameters or validating compiles nothing again.
- Dropout is a hash of (seed, index), which costs fewer instructions than torch.compile's Philox and
  keeps no mask. The seed is drawn from torch's generator, whose stream is the right one: equal on
  tensor ranks outside sequence parallelism, and restored by recomputation.

megatron-core's ``bias_gelu_impl`` and ``bias_dropout_add_fused_train`` are not used: they leave the
sum of a bias's gradient to a second, slow kernel, round constants, or know no DeepNorm.

Compiled code is shared by all layers. The number of rows may change: the second number compiles code
for all. Few rows, as generation has, run one by one.

Shapes: n rows of hidden states (s x b), f features.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from glm_dist.model.main_gradient import hand_over
from glm_dist.model.pointwise import ONE_BY_ONE, Pointwise

FEW_ROWS = 512
"""Below this many rows the start of a kernel takes longer than the kernel."""


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function under torch.compile; nothing is compiled before its first call."""
    return torch.compile(function, fullgraph=True)


# The functions below are compiled. They compute in fp32 and round once, at the end.


def _kept(seed: torch.Tensor, like: torch.Tensor, dropout: float) -> torch.Tensor:
    """Decide which numbers dropout keeps, bool [n, f].

    The index of a number is mixed with two random words by multiplications, whose overflow is
    wanted, and logical shifts (the integer hash ``lowbias32`` with a second word in the middle).
    """
    rows, columns = (
        torch.arange(size, dtype=torch.int32, device=like.device) for size in like.shape
    )
    word = rows.unsqueeze(1) * like.size(1) + columns + seed[0]
    word = (word ^ ((word >> 16) & 0xFFFF)) * 0x7FEB352D + seed[1]
    word = (word ^ ((word >> 15) & 0x1FFFF)) * -0x7B935975
    word = word ^ ((word >> 16) & 0xFFFF)
    return (word & 0xFFFFFF) >= round(dropout * 2**24)


def _drop(
    wide: torch.Tensor, seed: torch.Tensor | None, like: torch.Tensor, dropout: float
) -> torch.Tensor:
    if seed is None:
        return wide
    return torch.where(_kept(seed, like, dropout), wide / (1.0 - dropout), 0.0)


def _norm(
    wide: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    variance, mean = torch.var_mean(wide, dim=1, correction=0)
    scale = torch.rsqrt(variance + eps)
    normed = (wide - mean.unsqueeze(1)) * scale.unsqueeze(1)
    return normed * weight.float() + bias.float(), mean, scale


def _norm_gradient(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return gradients of the norm's input, and of weight and bias before their sum over rows."""
    gradient = gradient.float()
    normed = (hidden.float() - mean.unsqueeze(1)) * scale.unsqueeze(1)
    inner = gradient * weight.float()
    inner_mean = inner.mean(dim=1, keepdim=True)
    along = (inner * normed).mean(dim=1, keepdim=True)
    return (inner - inner_mean - normed * along) * scale.unsqueeze(1), gradient * normed, gradient


def norm_forward(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    normed, mean, scale = _norm(hidden.float(), weight, bias, eps)
    return normed.to(hidden.dtype), mean, scale


def norm_backward(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    sums: bool,
) -> tuple[torch.Tensor, ...]:
    inner, of_weight, of_bias = _norm_gradient(gradient, hidden, weight, mean, scale)
    if not sums:
        return (inner.to(hidden.dtype),)
    return inner.to(hidden.dtype), of_weight.sum(dim=0), of_bias.sum(dim=0)


def gelu_forward(inputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return ONE_BY_ONE.gelu(inputs.float(), bias.float()).to(inputs.dtype)


def gelu_backward(
    gradient: torch.Tensor, inputs: torch.Tensor, bias: torch.Tensor, sums: bool
) -> tuple[torch.Tensor, ...]:
    wide = inputs.float() + bias.float()
    inner = torch.ops.aten.gelu_backward(gradient.float(), wide, approximate="tanh")
    return (inner.to(inputs.dtype), inner.sum(dim=0)) if sums else (inner.to(inputs.dtype),)


def geglu_forward(inputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return ONE_BY_ONE.geglu(inputs.float(), bias.float()).to(inputs.dtype)


def geglu_backward(
    gradient: torch.Tensor, inputs: torch.Tensor, bias: torch.Tensor, sums: bool
) -> tuple[torch.Tensor, ...]:
    gate, value = (inputs.float() + bias.float()).chunk(2, dim=1)
    gradient = gradient.float()
    of_gate = torch.ops.aten.gelu_backward(gradient * value, gate)
    of_value = gradient * torch.nn.functional.gelu(gate)
    inner = torch.cat([of_gate, of_value], dim=1).to(inputs.dtype)
    if not sums:
        return (inner,)
    return inner, torch.cat([of_gate.sum(dim=0), of_value.sum(dim=0)])


def add_forward(
    update: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    seed: torch.Tensor | None,
    alpha: float,
    dropout: float,
) -> torch.Tensor:
    dropped = _drop(update.float() + bias.float(), seed, update, dropout)
    return (alpha * residual.float() + dropped).to(update.dtype)


def add_backward(
    gradient: torch.Tensor, seed: torch.Tensor | None, alpha: float, dropout: float, sums: bool
) -> tuple[torch.Tensor, ...]:
    """Return gradients of update and residual, then of the bias."""
    inner = _drop(gradient.float(), seed, gradient, dropout)
    kept = gradient if seed is None else inner.to(gradient.dtype)
    of_residual = gradient if alpha == 1.0 else (alpha * gradient.float()).to(gradient.dtype)
    return (kept, of_residual, inner.sum(dim=0)) if sums else (kept, of_residual)


def add_norm_forward(
    update: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    norm_bias: torch.Tensor,
    seed: torch.Tensor | None,
    eps: float,
    alpha: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dropped = _drop(update.float() + bias.float(), seed, update, dropout)
    total = alpha * residual.float() + dropped
    normed, mean, scale = _norm(total, weight, norm_bias, eps)
    return total.to(update.dtype), normed.to(update.dtype), mean, scale


def add_norm_backward(
    of_total: torch.Tensor | None,
    of_normed: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    seed: torch.Tensor | None,
    alpha: float,
    dropout: float,
    sums: bool,
) -> tuple[torch.Tensor, ...]:
    """Return gradients of update and residual, then of bias, norm weight and norm bias."""
    inner, of_weight, of_bias = _norm_gradient(of_normed, total, weight, mean, scale)
    if of_total is not None:
        inner = inner + of_total.float()
    kept = _drop(inner, seed, total, dropout)
    outputs = kept.to(total.dtype), (alpha * inner).to(total.dtype)
    if not sums:
        return outputs
    return *outputs, kept.sum(dim=0), of_weight.sum(dim=0), of_bias.sum(dim=0)


def sum_forward(
    parts: list[torch.Tensor], seed: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return _drop(total, seed, total, dropout).to(parts[0].dtype)


def drop_backward(gradient: torch.Tensor, seed: torch.Tensor, dropout: float) -> torch.Tensor:
    return _drop(gradient.float(), seed, gradient, dropout).to(gradient.dtype)


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
        rows = hidden.reshape(-1, hidden.size(-1))
        normed, mean, scale = compiled(norm_forward)(rows, weight, bias, eps)
        ctx.save_for_backward(rows, weight, mean, scale)
        ctx.parameters = weight, bias
        return normed.view(hidden.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, *saved = ctx.saved_tensors
        sums = any(ctx.needs_input_grad[1:3])
        inner, *sums_over_rows = compiled(norm_backward)(_rows(gradient), rows, *saved, sums)
        of_parameters = hand_over(ctx.parameters, sums_over_rows, ctx.needs_input_grad[1:3])
        return inner.view(gradient.shape), *of_parameters, None


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        bias: torch.Tensor,
        forward: Callable[..., torch.Tensor],
        backward: Callable[..., tuple[torch.Tensor, ...]],
    ) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.size(-1))
        ctx.save_for_backward(rows, bias)
        ctx.of_gradient, ctx.parameters = backward, (bias,)
        out: torch.Tensor = compiled(forward)(rows, bias)
        return out.view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sums = ctx.needs_input_grad[1]
        inner, *of_bias = compiled(ctx.of_gradient)(_rows(gradient), *ctx.saved_tensors, sums)
        of_parameters = hand_over(ctx.parameters, of_bias, ctx.needs_input_grad[1:2])
        return inner.view(*gradient.shape[:-1], -1), *of_parameters, None, None


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
        out: torch.Tensor = compiled(add_forward)(
            _rows(update), bias, _rows(residual), seed, alpha, dropout
        )
        return out.view(update.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sums = ctx.needs_input_grad[1]
        seed, alpha, _ = ctx.rest
        if not sums and seed is None and alpha == 1.0:
            return gradient, None, gradient, None, None
        inner, of_residual, *of_bias = compiled(add_backward)(_rows(gradient), *ctx.rest, sums)
        (given,) = hand_over(ctx.parameters, of_bias, ctx.needs_input_grad[1:2])
        shape = gradient.shape
        return inner.view(shape), given, of_residual.view(shape), None, None


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
        total, normed, mean, scale = compiled(add_norm_forward)(
            _rows(update), bias, _rows(residual), weight, norm_bias, seed, eps, alpha, dropout
        )
        total, normed = total.view(update.shape), normed.view(update.shape)
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
            None if of_total is None else _rows(of_total),
            _rows(of_normed),
            _rows(total),
            weight,
            mean,
            scale,
            *ctx.rest,
            any(needs),
        )
        of_bias, *of_norm = hand_over(ctx.parameters, sums_over_rows, needs)
        shape = total.shape
        return inner.view(shape), of_bias, of_residual.view(shape), *of_norm, *(None,) * 3


class _SumAndDrop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dropout: float, *parts: torch.Tensor) -> torch.Tensor:
        seed = draw_seed(parts[0].device, dropout)
        ctx.rest, ctx.num_parts = (seed, dropout), len(parts)
        out: torch.Tensor = compiled(sum_forward)([_rows(part) for part in parts], seed, dropout)
        return out.view(parts[0].shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        seed, _ = ctx.rest
        if seed is not None:
            inner = compiled(drop_backward)(_rows(gradient), *ctx.rest)
            gradient = inner.view(gradient.shape)
        return None, *(gradient,) * ctx.num_parts


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """View [s, b, f] as [n, f]."""
    return tensor.reshape(-1, tensor.size(-1))


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
