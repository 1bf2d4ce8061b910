"""Rotary positions: lengths stay, products depend on both distances only."""

import math

import pytest
import torch

from glm_dist.model.attention.rotary import plan_rotation, rotate


def turned(vector: torch.Tensor, position: int, block_position: int) -> torch.Tensor:
    """One head of one token at two positions."""
    rotation = plan_rotation(
        torch.tensor([[position]]), torch.tensor([[block_position]]), head_size=vector.numel()
    )
    return rotate(vector.view(1, 1, 1, -1), rotation).flatten()


def test_half_of_a_head_turns_by_each_position() -> None:
    # d = 8: halves of 4, pairs (0, 2) and (1, 3) of a half at speeds 1 and 10000^(-1/2) = 0.01
    first = turned(torch.eye(8)[0], 2, 5)
    second = turned(torch.eye(8)[5], 2, 5)

    assert first.tolist() == pytest.approx([math.cos(2), 0, math.sin(2), 0, 0, 0, 0, 0])
    assert second.tolist() == pytest.approx([0, 0, 0, 0, 0, math.cos(0.05), 0, math.sin(0.05)])


def test_products_depend_on_distances_only() -> None:
    query, key = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    near = turned(query, 9, 4) @ turned(key, 2, 1)

    assert float(turned(query, 107, 33) @ turned(key, 100, 30)) == pytest.approx(
        float(near), abs=1e-4
    )
    assert abs(float(turned(query, 107, 33) @ turned(key, 101, 30) - near)) > 1e-2
    assert abs(float(turned(query, 107, 33) @ turned(key, 100, 31) - near)) > 1e-2
    assert float(turned(query, 9, 4).norm()) == pytest.approx(float(query.norm()), rel=1e-6)


def test_rows_and_places_have_their_own_angles() -> None:
    generator = torch.Generator().manual_seed(1)
    positions = torch.randint(0, 50, (3, 5), generator=generator)  # [b, s]
    blocks = torch.randint(0, 50, (3, 5), generator=generator)
    heads = torch.randn(5, 3, 2, 8, generator=generator)  # [s, b, a, d]

    found = rotate(heads, plan_rotation(positions, blocks, head_size=8))

    for row in range(3):
        for position in range(5):
            for head in range(2):
                alone = turned(
                    heads[position, row, head],
                    int(positions[row, position]),
                    int(blocks[row, position]),
                )
                torch.testing.assert_close(found[position, row, head], alone)


def test_16_bit_numbers_are_rounded_once() -> None:
    heads = torch.randn(4, 1, 1, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    rotation = plan_rotation(torch.arange(4)[None] * 500, torch.arange(4)[None], head_size=16)

    found = rotate(heads, rotation)

    assert found.dtype is torch.bfloat16
    assert torch.equal(found, rotate(heads.double(), rotation).bfloat16())
