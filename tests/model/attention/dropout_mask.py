"""The dropout mask of the attention kernels, written down a second time with 64-bit integers."""

import numpy as np
import torch

BITS = np.uint64(0xFFFFFFFF)


def times(x: np.ndarray, factor: int) -> np.ndarray:
    return (x * np.uint64(factor)) & BITS


def mix(x: np.ndarray) -> np.ndarray:
    x = times(x ^ (x >> np.uint64(16)), 0x7FEB352D)
    x = times(x ^ (x >> np.uint64(15)), 0x846CA68B)
    return x ^ (x >> np.uint64(16))


def unsigned(x: torch.Tensor) -> np.ndarray:
    """32-bit words as numbers from 0 to 2^32 - 1."""
    return x.cpu().numpy().astype(np.int64).view(np.uint64) & BITS


def query_words(
    seed: torch.Tensor, *, layer: int, heads: range, rows: int, row_length: int
) -> np.ndarray:
    """Odd words [b, a, s]."""
    head = np.arange(heads.start, heads.stop, dtype=np.uint64)[None, :, None]
    row = np.arange(rows, dtype=np.uint64)[:, None, None]
    position = np.arange(row_length, dtype=np.uint64)[None, None, :]
    streams = []
    for word in unsigned(seed):
        word = mix((np.full((1, 1, 1), word) + times(np.uint64(layer), 0x9E3779B1)) & BITS)
        word = mix((word + times(head, 0x85EBCA77)) & BITS)
        streams.append(mix((word + times(row, 0xC2B2AE3D)) & BITS))
    word = mix((streams[0] + times(position, 0x9E3779B1)) & BITS)
    return mix(word ^ streams[1]) | np.uint64(1)


def kept(
    seed: torch.Tensor, keys: torch.Tensor, *, rate: float, layer: int, heads: range
) -> torch.Tensor:
    """True for pairs that stay [b, a, s, s]: queries, then keys."""
    rows, row_length = keys.shape
    queries = query_words(seed, layer=layer, heads=heads, rows=rows, row_length=row_length)
    products = (queries[..., :, None] * unsigned(keys)[:, None, None, :]) & BITS
    # Signed order is unsigned order with the highest bit flipped.
    flipped = products ^ np.uint64(2**31)
    return torch.from_numpy(flipped >= np.uint64(round(rate * 2**32)))
