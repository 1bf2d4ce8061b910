"""Bodies of the fused operations: what torch.compile makes kernels of. See ``fused.py``.

They compute in fp32 and round once, at the end. A parameter's gradient is the fp32 sum over rows.

Shapes: s row length, b micro-batch, f features.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from glm_dist.model.pointwise import ONE_BY_ONE

VARIANTS = 64
"""Forms of a function that torch.compile may keep: by shape, dropout, and what is frozen. torch
allows 8, and the next one would end the run."""


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function under torch.compile; nothing is compiled before its first call."""
    limits = torch._dynamo.config  # of this thread; a GPU's backward has another one
    limits.recompile_limit = max(limits.recompile_limit, VARIANTS)
    return torch.compile(function, fullgraph=True)


def _kept(seed: torch.Tensor, like: torch.Tensor, dropout: float) -> torch.Tensor:
    """Decide which numbers dropout keeps, bool [s, b, f].

    The index of a number is mixed with two random words by multiplications, whose overflow is
    wanted, and logical shifts: the integer hash ``lowbias32`` with a second word in the middle.
    """
    steps, rows, columns = (
        torch.arange(size, dtype=torch.int32, device=like.device) for size in like.shape
    )
    row = steps.unsqueeze(1) * like.size(1) + rows
    word = row.unsqueeze(2) * like.size(2) + columns + seed[0]
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
    variance, mean = torch.var_mean(wide, dim=-1, correction=0)
    scale = torch.rsqrt(variance + eps)
    normed = (wide - mean.unsqueeze(-1)) * scale.unsqueeze(-1)
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
    normed = (hidden.float() - mean.unsqueeze(-1)) * scale.unsqueeze(-1)
    inner = gradient * weight.float()
    inner_mean = inner.mean(dim=-1, keepdim=True)
    along = (inner * normed).mean(dim=-1, keepdim=True)
    return (inner - inner_mean - normed * along) * scale.unsqueeze(-1), gradient * normed, gradient


def norm_forward(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the norm [s, b, f], and mean and reciprocal deviation of each row [s, b]."""
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
    """Return gradients of the input [s, b, f] and, if asked for, of weight and bias [f]."""
    inner, of_weight, of_bias = _norm_gradient(gradient, hidden, weight, mean, scale)
    if not sums:
        return (inner.to(hidden.dtype),)
    return inner.to(hidden.dtype), of_weight.sum(dim=(0, 1)), of_bias.sum(dim=(0, 1))


def gelu_forward(inputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return GELU(inputs + bias) [s, b, f]."""
    return ONE_BY_ONE.gelu(inputs.float(), bias.float()).to(inputs.dtype)


def gelu_backward(
    gradient: torch.Tensor, inputs: torch.Tensor, bias: torch.Tensor, sums: bool
) -> tuple[torch.Tensor, ...]:
    """Return gradients of the input [s, b, f] and, if asked for, of the bias [f]."""
    wide = inputs.float() + bias.float()
    inner = torch.ops.aten.gelu_backward(gradient.float(), wide, approximate="tanh")
    return (inner.to(inputs.dtype), inner.sum(dim=(0, 1))) if sums else (inner.to(inputs.dtype),)


def geglu_forward(inputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return GELU(gate) x value [s, b, f] of inputs + bias [s, b, 2 f]."""
    return ONE_BY_ONE.geglu(inputs.float(), bias.float()).to(inputs.dtype)


def geglu_backward(
    gradient: torch.Tensor, inputs: torch.Tensor, bias: torch.Tensor, sums: bool
) -> tuple[torch.Tensor, ...]:
    """Return gradients of the input [s, b, 2 f] and, if asked for, of the bias [2 f]."""
    gate, value = (inputs.float() + bias.float()).chunk(2, dim=-1)
    gradient = gradient.float()
    of_gate = torch.ops.aten.gelu_backward(gradient * value, gate)
    of_value = gradient * torch.nn.functional.gelu(gate)
    inner = torch.cat([of_gate, of_value], dim=-1).to(inputs.dtype)
    if not sums:
        return (inner,)
    return inner, torch.cat([of_gate.sum(dim=(0, 1)), of_value.sum(dim=(0, 1))])


def add_forward(
    update: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    seed: torch.Tensor | None,
    alpha: float,
    dropout: float,
) -> torch.Tensor:
    """Return alpha x residual + dropout(update + bias) [s, b, f]."""
    dropped = _drop(update.float() + bias.float(), seed, update, dropout)
    return (alpha * residual.float() + dropped).to(update.dtype)


def add_backward(
    gradient: torch.Tensor, seed: torch.Tensor | None, alpha: float, dropout: float, sums: bool
) -> tuple[torch.Tensor, ...]:
    """Return gradients of update and residual, then of the bias."""
    inner = _drop(gradient.float(), seed, gradient, dropout)
    kept = gradient if seed is None else inner.to(gradient.dtype)
    of_residual = gradient if alpha == 1.0 else (alpha * gradient.float()).to(gradient.dtype)
    return (kept, of_residual, inner.sum(dim=(0, 1))) if sums else (kept, of_residual)


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
    """Return the sum of ``add_forward``, its norm, and what ``norm_forward`` adds."""
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
    return *outputs, kept.sum(dim=(0, 1)), of_weight.sum(dim=(0, 1)), of_bias.sum(dim=(0, 1))


def sum_forward(
    parts: list[torch.Tensor], seed: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """Return dropout(sum of the parts) [s, b, f]."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return _drop(total, seed, total, dropout).to(parts[0].dtype)


def drop_backward(gradient: torch.Tensor, seed: torch.Tensor, dropout: float) -> torch.Tensor:
    """Return the gradient of what was dropped [s, b, f]."""
    return _drop(gradient.float(), seed, gradient, dropout).to(gradient.dtype)
