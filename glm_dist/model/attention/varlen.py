"""Prefix attention on a GPU: two variable-length flash calls over all segments of a micro-batch.

There is no mask and no work on padding, for any prefixes. The kernels are flash-attn's if that
package is installed, else torch's.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from glm_dist.model.attention.plan import VariableLength

try:
    from flash_attn import flash_attn_varlen_func

    HAVE_FLASH_ATTN = True
except ImportError:
    HAVE_FLASH_ATTN = False
try:
    from torch.nn.attention.varlen import varlen_attn

    HAVE_VARLEN = True
except ImportError:
    HAVE_VARLEN = False

FLASH_DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
"""Head size that flash kernels are built for."""
HEAD_DIVISOR = 8
AMPERE = (8, 0)
"""First compute capability with flash kernels."""

Kernel: TypeAlias = Callable[..., torch.Tensor]
"""(query [n, a, d], key [m, a, d], value [m, a, d], query_borders, key_borders, longest_query,
longest_key, *, dropout, causal) -> [n, a, d]; causal is aligned to the last query and key."""


class _Permute(torch.autograd.Function):
    """Permutation of a tensor's rows; backward is a gather too, where indexing would scatter."""

    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return tensor.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


def flash_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_borders: torch.Tensor,
    key_borders: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    dropout: float,
    causal: bool,
) -> torch.Tensor:
    """Call the installed variable-length flash kernel; see ``Kernel``."""
    out: torch.Tensor
    if HAVE_FLASH_ATTN:
        out = flash_attn_varlen_func(
            query,
            key,
            value,
            query_borders,
            key_borders,
            longest_query,
            longest_key,
            dropout_p=dropout,
            causal=causal,
        )
    elif HAVE_VARLEN and dropout == 0.0:
        out = _torch_varlen(
            query,
            key,
            value,
            query_borders,
            key_borders,
            longest_query,
            longest_key,
            causal=causal,
        )
    else:
        # torch's public call has no dropout; the operator below it does.
        out = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            query_borders,
            key_borders,
            longest_query,
            longest_key,
            dropout,
            causal,
            False,
        )[0]
    return out


def _torch_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_borders: torch.Tensor,
    key_borders: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    causal: bool,
) -> torch.Tensor:
    """Call torch's kernel: torch 2.9 takes a flag for causality, later versions a window."""
    call: Callable[..., torch.Tensor] = varlen_attn  # type: ignore[assignment]
    arguments = (query, key, value, query_borders, key_borders, longest_query, longest_key)
    if "is_causal" in varlen_attn.__annotations__:
        return call(*arguments, is_causal=causal)
    return call(*arguments, window_size=(-1, 0) if causal else (-1, -1))


def can_use_flash(device: torch.device, dtype: torch.dtype, *, head_size: int) -> bool:
    """Return True if the kernels support tensors [..., d]: not in fp32, no GPU before Ampere."""
    if dtype not in FLASH_DTYPES or head_size > LARGEST_HEAD or head_size % HEAD_DIVISOR:
        return False
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= AMPERE


def _permuted(x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _Permute.apply(x, order, inverse)  # type: ignore[no-untyped-call]
    return out


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: VariableLength,
    *,
    dropout: float,
    kernel: Kernel = flash_kernel,
) -> torch.Tensor:
    """Compute attention of every segment in two calls.

    Args:
        query: [s, b, a, d].
        key: [s, b, a, d].
        value: [s, b, a, d].
        plan: Orders and borders of the micro-batch.
        dropout: Probability of dropping an attention weight.
        kernel: Computes one variable-length call.

    Returns:
        [s, b, a, d].
    """
    queries = _permuted(query.flatten(0, 1), plan.query_order, plan.query_inverse)  # [s * b, a, d]
    keys = _permuted(key.flatten(0, 1), plan.key_order, plan.key_inverse)
    values = _permuted(value.flatten(0, 1), plan.key_order, plan.key_inverse)
    parts = []
    if plan.longest_part_a > 0:
        parts.append(
            kernel(
                queries[: plan.num_part_a],
                keys,
                values,
                plan.part_a_queries,
                plan.part_a_keys,
                plan.longest_part_a,
                max(plan.longest_part_a, plan.longest_part_b),
                dropout=dropout,
                causal=False,
            )
        )
    if plan.longest_part_b > 0:
        parts.append(
            kernel(
                queries[plan.num_part_a :],
                keys,
                values,
                plan.part_b_queries,
                plan.part_b_keys,
                plan.longest_part_b,
                plan.longest_segment,
                dropout=dropout,
                causal=True,
            )
        )
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return _permuted(out, plan.query_inverse, plan.query_order).view(query.shape)
