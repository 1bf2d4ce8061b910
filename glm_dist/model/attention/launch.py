"""Launches of the attention kernels on tensors [s, b, a, d] of any strides but d's.

Shapes: s row length, b rows, a heads of this rank, d head size, n segments.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from triton.runtime import driver

from glm_dist.model.attention.blocks import INTERPRETED, Blocks, Kernel, blocks_for, padded_head
from glm_dist.model.attention.kernels import forward_kernel
from glm_dist.model.attention.kernels_backward import keys_kernel, prepare_kernel, queries_kernel

LOG2_E = 1.4426950408889634
PREPARED = 128
"""Queries of a program that computes delta."""

FARTHEST = 2**31 // PREPARED
"""Above all strides between positions: no tile has more positions than ``PREPARED``."""


@dataclass(frozen=True)
class Dropped:
    """Dropout of one layer's attention weights; see ``dropout.py``."""

    rate: float
    seed: torch.Tensor
    """Words of the micro-batch, int32 [2]."""
    keys: torch.Tensor
    """Odd words of the keys, int32 [b, s]."""
    origin: torch.Tensor
    """Global number of the layer and of this rank's first head, int32 [2]."""

    @property
    def threshold(self) -> int:
        """Products of words below this, as signed numbers, are dropped."""
        return round(self.rate * 2**32) - 2**31


def blocks_of(kernel: Kernel, tensor: torch.Tensor) -> Blocks:
    """Return the tiles of a kernel for a tensor [s, b, a, d] on its device."""
    if tensor.device.type == "cpu":
        return INTERPRETED
    return _blocks(kernel, tensor.get_device(), tensor.size(3), tensor.element_size())


@cache
def _blocks(kernel: Kernel, device: int, head_size: int, itemsize: int) -> Blocks:
    properties = driver.active.utils.get_device_properties(device)
    shared_memory = properties["max_shared_mem"]
    return blocks_for(kernel, head_size=head_size, itemsize=itemsize, shared_memory=shared_memory)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: torch.Tensor,
    dropped: Dropped | None = None,
    *,
    blocks: Blocks | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention.

    Args:
        query: [s, b, a, d].
        key: [s, b, a, d].
        value: [s, b, a, d].
        segments: Row, first position, length and prefix of every segment, int32 [n, 4]; they cover
            every position once.
        dropped: Dropout of the weights; None for none.
        blocks: Tiles; None: of the table.

    Returns:
        [s, b, a, d], contiguous; and the log-sum-exp [b, a, s] in fp32, in units of log 2.
    """
    s, b, a, d = query.shape
    blocks = blocks or blocks_of("forward", query)
    out = torch.empty((s, b, a, d), dtype=query.dtype, device=query.device)
    log_sum = torch.empty((b, a, s), dtype=torch.float32, device=query.device)
    seed, keys, origin = _words(dropped, segments)
    grid = (triton.cdiv(s, blocks.queries), a, segments.size(0))
    strides = tuple(_strides(x) for x in (query, key, value, out))
    threshold = dropped.threshold if dropped else 0
    forward_kernel[grid](
        *(query, key, value, out, log_sum, segments, seed, keys, origin, strides),
        *(d**-0.5 * LOG2_E, threshold, _factor(dropped), s),
        DROP=dropped is not None,
        **_settings(blocks, d),
    )
    return out, log_sum


def attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    segments: torch.Tensor,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    dropped: Dropped | None = None,
    *,
    keys_blocks: Blocks | None = None,
    queries_blocks: Blocks | None = None,
) -> None:
    """Compute the gradients of ``attend``.

    Args:
        grad: Gradient of the output [s, b, a, d].
        query: As in ``attend``.
        key: As in ``attend``.
        value: As in ``attend``.
        out: Output of ``attend``.
        log_sum: Output of ``attend``.
        segments: As in ``attend``.
        gradients: Of query, key and value, [s, b, a, d] each; written, every element.
        dropped: As in ``attend``.
        keys_blocks: Tiles of the kernel of keys and values; None: of the table.
        queries_blocks: Tiles of the kernel of queries; None: of the table.
    """
    s, _, a, d = query.shape
    delta, words = _prepare(grad, out, dropped)
    _, keys, _ = _words(dropped, segments)
    factor, threshold = _factor(dropped), dropped.threshold if dropped else 0
    scale = d**-0.5
    read = (query, key, value, grad, log_sum, delta, words)
    strides = tuple(_strides(x) for x in (query, key, value, grad))
    grad_strides = tuple(_strides(x) for x in gradients)
    shared = (segments, keys, strides, grad_strides, scale * LOG2_E, threshold, scale * factor)
    grad_query, grad_key, grad_value = gradients
    drops = dropped is not None
    blocks = keys_blocks or blocks_of("keys", query)
    keys_kernel[triton.cdiv(s, blocks.keys), a, segments.size(0)](
        *read, grad_key, grad_value, *shared, factor, s, DROP=drops, **_settings(blocks, d)
    )
    blocks = queries_blocks or blocks_of("queries", query)
    queries_kernel[triton.cdiv(s, blocks.queries), a, segments.size(0)](
        *read, grad_query, *shared, s, DROP=drops, **_settings(blocks, d)
    )


def _prepare(
    grad: torch.Tensor, out: torch.Tensor, dropped: Dropped | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute delta times the keep probability [b, a, s], and the words of the queries."""
    s, b, a, d = out.shape
    delta = torch.empty((b, a, s), dtype=torch.float32, device=out.device)
    words = torch.empty((b, a, s) if dropped else (1,), dtype=torch.int32, device=out.device)
    seed, _, origin = _words(dropped, words)
    strides = (_strides(out), _strides(grad))
    prepare_kernel[triton.cdiv(s, PREPARED), a, b](
        *(out, grad, delta, words, seed, origin, strides, 1.0 / _factor(dropped), s),
        HEAD=d,
        D=padded_head(d),
        M=PREPARED,
        DROP=dropped is not None,
    )
    return delta, words


def _settings(blocks: Blocks, head_size: int) -> dict[str, Any]:
    return {
        "HEAD": head_size,
        "D": padded_head(head_size),
        "M": blocks.queries,
        "N": blocks.keys,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Return the strides of position, row and head of [s, b, a, d]."""
    assert x.stride(3) == 1, "the kernels read a head's numbers in one piece"
    assert x.stride(0) < FARTHEST, "the kernels' offsets in a tile have 32 bits; use fewer rows"
    return x.stride(0), x.stride(1), x.stride(2)


def _words(
    dropped: Dropped | None, unused: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the words of dropout, or a pointer that is not read."""
    if dropped is None:
        return unused, unused, unused
    return dropped.seed, dropped.keys, dropped.origin


def _factor(dropped: Dropped | None) -> float:
    """Return the factor of kept weights."""
    return 1.0 / (1.0 - dropped.rate) if dropped else 1.0
