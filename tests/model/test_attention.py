"""The two attention calls against one dense mask."""

import numpy as np
import pytest
import torch

from glm_dist.model.attention import prefix_attention


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prefix_lengths: list[int]
) -> torch.Tensor:
    """Attention written out: scores, the mask of GLM 2.1, softmax, sum."""
    length = query.size(2)
    place = torch.arange(length)
    causal = place[None, :] <= place[:, None]
    visible = torch.stack([causal | (place[None, :] < p) for p in prefix_lengths])
    scores = query @ key.transpose(2, 3) / query.size(3) ** 0.5
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    return scores.softmax(dim=3) @ value


@pytest.mark.parametrize("seed", range(20))
def test_two_calls_equal_a_dense_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, length = int(rng.integers(1, 4)), int(rng.integers(1, 40))
    prefix_lengths = [int(p) for p in rng.integers(0, length + 1, size=rows)]
    torch.manual_seed(seed)
    q, k, v = (
        torch.randn(rows, 2, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    weight = torch.randn(rows, 2, length, 8, dtype=torch.float64)

    found = prefix_attention(q, k, v, prefix_lengths=prefix_lengths, dropout=0.0)
    found_gradients = torch.autograd.grad((found * weight).sum(), (q, k, v))
    expected = dense(q, k, v, prefix_lengths)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), (q, k, v))

    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for a, b in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_no_query_of_part_a_depends_on_part_b() -> None:
    q, k, v = (torch.randn(1, 1, 6, 4) for _ in range(3))
    changed = v.clone()
    changed[:, :, 4:] += 1.0

    before = prefix_attention(q, k, v, prefix_lengths=[4], dropout=0.0)
    after = prefix_attention(q, k, changed, prefix_lengths=[4], dropout=0.0)

    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.equal(before[:, :, 4], after[:, :, 4])


def test_dropout_drops() -> None:
    q, k, v = (torch.randn(1, 1, 6, 4) for _ in range(3))

    with_dropout = prefix_attention(q, k, v, prefix_lengths=[3], dropout=0.5)

    assert not torch.allclose(
        with_dropout, prefix_attention(q, k, v, prefix_lengths=[3], dropout=0.0)
    )
