"""The kernels that a GPU chooses for prefix attention, against a dense mask in fp64."""

import numpy as np
import pytest
import torch

from glm_dist.model.attention.dispatch import prefix_attention
from tests.gpu.device import DEVICE
from tests.model.attention.test_dispatch import plan_of, random_row, with_padding
from tests.model.masks import dense_attention, dense_mask

HEADS, HEAD_SIZE = 4, 64
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ROUNDINGS = {torch.bfloat16: 8, torch.float16: 8, torch.float32: 64}
"""Allowed error in units of the format's rounding, of the largest number. Kernels round the weights
and the result to 16 bits, and sum in fp32; in fp32 a row's sums are what is rounded."""


def allowed(expected: torch.Tensor, dtype: torch.dtype) -> float:
    return ROUNDINGS[dtype] * torch.finfo(dtype).eps * float(expected.abs().max())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_equal_a_dense_mask(dtype: torch.dtype, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows, length = int(rng.integers(1, 6)), int(rng.integers(16, 200))
    rows = [random_row(rng, length) for _ in range(num_rows)]  # half of them packed
    torch.manual_seed(seed)
    shape = (num_rows, HEADS, length, HEAD_SIZE)
    tensors = [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for _ in range(3)]
    weight = torch.randn(shape, device=DEVICE).to(dtype)
    exact = [x.detach().double().requires_grad_() for x in tensors]

    plan = plan_of(rows, length, torch.device(DEVICE))
    found = prefix_attention(*tensors, plan=plan, dropout=0.0)
    gradients = torch.autograd.grad(found, tensors, weight)

    mask = dense_mask(with_padding(rows, length), length).to(DEVICE)
    expected = dense_attention(*exact, mask)
    expected_gradients = torch.autograd.grad(expected, exact, weight.double())
    for ours, theirs in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        assert ours.dtype is dtype
        torch.testing.assert_close(ours.double(), theirs, atol=allowed(theirs, dtype), rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_repeats_with_its_seed_and_keeps_the_mean(dtype: torch.dtype) -> None:
    rows = [random_row(np.random.default_rng(seed), 48) for seed in range(4)]
    plan = plan_of(rows, 48, torch.device(DEVICE))
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(4, HEADS, 48, HEAD_SIZE, device=DEVICE).to(dtype) for _ in range(3)
    )

    def dropped(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return prefix_attention(query, key, value, plan=plan, dropout=0.1)

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))
    draws = torch.stack([dropped(seed).double() for seed in range(400)])
    expected = prefix_attention(query, key, value, plan=plan, dropout=0.0).double()
    # 6 deviations of a mean of 400 draws: one in 10^8 of them is farther off, of 49 152 numbers.
    sampling = 6 * draws.std(dim=0) / 400**0.5
    error = (draws.mean(dim=0) - expected).abs()
    assert bool((error <= sampling + allowed(expected, dtype)).all()), float(error.max())
