"""Tile sizes of the attention kernels: one table, fitted to the GPU's shared memory.

The choice is a pure function of shape, format and GPU model. Tile sizes set the order of sums, so a
choice by timing would let ranks, or a run and its resumption, differ in the last bits; therefore
nothing is measured in training. ``python -m benchmarks.attention --tune`` measures candidates for
this table.
"""

from dataclasses import dataclass, replace
from typing import Literal

Kernel = Literal["forward", "keys", "queries"]


@dataclass(frozen=True)
class Blocks:
    """Launch settings of one kernel."""

    queries: int
    """M, queries of a tile."""
    keys: int
    """N, keys of a tile."""
    warps: int
    stages: int
    """Tiles that are loaded ahead, plus one."""


INTERPRETED = Blocks(queries=32, keys=16, warps=1, stages=1)
"""On a CPU: small, so that short rows have several tiles."""

# Sums stay in registers, so wide heads take smaller tiles. 16-bit heads of 64 as a prototype on an
# H200 preferred them; the others by the registers that the compiler needs for Hopper, unmeasured.
_TABLE: dict[tuple[Kernel, int, int], Blocks] = {
    # (kernel, bytes of a number, widest head)
    ("forward", 2, 64): Blocks(128, 64, 4, 3),
    ("forward", 2, 128): Blocks(128, 64, 8, 3),
    ("forward", 2, 256): Blocks(128, 64, 8, 2),
    ("keys", 2, 64): Blocks(64, 128, 8, 3),
    ("keys", 2, 128): Blocks(32, 128, 8, 3),
    ("keys", 2, 256): Blocks(32, 64, 8, 2),
    ("queries", 2, 64): Blocks(128, 64, 8, 3),
    ("queries", 2, 128): Blocks(128, 64, 8, 2),
    ("queries", 2, 256): Blocks(64, 32, 8, 2),
    ("forward", 4, 64): Blocks(64, 32, 8, 2),
    ("forward", 4, 128): Blocks(32, 32, 4, 2),
    ("forward", 4, 256): Blocks(32, 16, 8, 2),
    ("keys", 4, 64): Blocks(32, 64, 8, 2),
    ("keys", 4, 128): Blocks(16, 32, 8, 2),
    ("keys", 4, 256): Blocks(16, 32, 8, 1),
    ("queries", 4, 64): Blocks(64, 32, 8, 2),
    ("queries", 4, 128): Blocks(32, 32, 8, 2),
    ("queries", 4, 256): Blocks(32, 16, 8, 1),
}
HEAD_CLASSES = (64, 128, 256)
VECTORS = 4096
"""Bytes of shared memory for what is no tile: statistics, words, reductions."""
SMALLEST = 16
"""Of a tile: tensor cores take no fewer rows."""


def blocks_for(kernel: Kernel, *, head_size: int, itemsize: int, shared_memory: int) -> Blocks:
    """Look up the tiles of a kernel, smaller where the GPU has too little shared memory.

    Args:
        kernel: Name of the kernel.
        head_size: d, at most 256.
        itemsize: Bytes of a number.
        shared_memory: Bytes that one block of threads may have.
    """
    head_class = next(size for size in HEAD_CLASSES if head_size <= size)
    blocks = _TABLE[kernel, itemsize, head_class]
    while shared_bytes(kernel, blocks, head_size, itemsize) > shared_memory:
        if blocks.stages > 1:
            blocks = replace(blocks, stages=blocks.stages - 1)
        elif blocks.queries >= blocks.keys and blocks.queries > SMALLEST:
            blocks = replace(blocks, queries=blocks.queries // 2)
        elif blocks.keys > SMALLEST:
            blocks = replace(blocks, keys=blocks.keys // 2)
        else:
            break
    return blocks


def padded_head(head_size: int) -> int:
    """Return the power of two that a head fills in a kernel."""
    return max(SMALLEST, 1 << (head_size - 1).bit_length())


def shared_bytes(kernel: Kernel, blocks: Blocks, head_size: int, itemsize: int) -> int:
    """Estimate the shared memory of a kernel: its own tile, and the pairs of tiles on their way.

    Args:
        kernel: Name of the kernel.
        blocks: Its tiles.
        head_size: d.
        itemsize: Bytes of a number.
    """
    own, passing = blocks.queries, blocks.keys
    if kernel == "keys":
        own, passing = passing, own
    own_tiles = 1 if kernel == "forward" else 2
    positions = own_tiles * own + 2 * blocks.stages * passing
    return positions * padded_head(head_size) * itemsize + VECTORS
