"""Positions as rotations of queries and keys (arXiv 2104.09864), for both of GLM's positions.

Half of each head is rotated by the position in the text, the other half by the position in the
blank, as in ChatGLM-6B; the product of a query and a key then depends on both distances. A half of
d/2 dims is d/4 pairs (i, i + d/4); pair i rotates by 10000^(-4 i / d) per position.
"""

from dataclasses import dataclass

import torch

BASE = 10000.0
"""The slowest pairs complete a turn in about 2 pi times as many positions."""


@dataclass(frozen=True)
class Rotation:
    """The angles of one micro-batch; the same for all heads and layers."""

    cos: torch.Tensor
    """[s, b, 1, 2, d/4] in fp32: halves, then pairs."""
    sin: torch.Tensor
    """[s, b, 1, 2, d/4] in fp32."""


def plan_rotation(
    positions: torch.Tensor, block_positions: torch.Tensor, *, head_size: int
) -> Rotation:
    """Compute the angles.

    Args:
        positions: Position in the corrupted text [b, s].
        block_positions: Position inside the blank [b, s].
        head_size: d, a multiple of 4.
    """
    pairs = torch.arange(head_size // 4, dtype=torch.float32, device=positions.device)
    speeds = BASE ** (-4.0 * pairs / head_size)  # [d/4]
    both = torch.stack([positions, block_positions], dim=2).transpose(0, 1)  # [s, b, 2]
    angles = both[:, :, None, :, None] * speeds
    return Rotation(cos=angles.cos(), sin=angles.sin())


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate the queries or keys of every head; 16-bit numbers are rounded once, at the end.

    Args:
        x: [s, b, a, d].
        rotation: Angles at the same positions.

    Returns:
        [s, b, a, d].
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = wide.reshape(*x.shape[:3], 2, 2, -1).unbind(4)  # [s, b, a, 2, d/4]
    turned = torch.stack(
        [
            first * rotation.cos - second * rotation.sin,
            first * rotation.sin + second * rotation.cos,
        ],
        dim=4,
    )
    return turned.flatten(3).to(x.dtype)
