"""Products that add to an fp32 sum, and the word to the optimizer that a gradient is there."""

import pytest
import torch

from glm_dist.model.main_gradient import add_product, arrived, main_gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_is_added_to_the_sum(dtype: torch.dtype) -> None:
    left, right = torch.randn(5, 3).to(dtype), torch.randn(3, 4).to(dtype)
    total = torch.full((5, 4), 7.0)
    expected = total.double() + left.double() @ right.double()

    add_product(total, left, right)

    # A product of three small numbers, rounded once.
    torch.testing.assert_close(total.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=1e-2)


def test_a_listener_hears_of_an_added_gradient() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert main_gradient(parameter) is None
    arrived(parameter)  # nobody listens

    heard: list[int] = []
    parameter.main_grad = torch.ones(2)
    parameter.gradient_arrived = lambda: heard.append(1)
    arrived(parameter)

    assert main_gradient(parameter) is parameter.main_grad
    assert heard == [1]
