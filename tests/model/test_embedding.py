"""The gradient that embeddings let through."""

import pytest
import torch

from glm_dist.model.embedding import shrink_gradient


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_shrunk_gradient_is_a_share_of_it_and_values_stay_to_the_bit(share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(5, 7, generator=generator, requires_grad=True)
    weights = torch.randn(5, 7, generator=generator)

    shrunk = shrink_gradient(values, share)
    (shrunk * weights).sum().backward()

    assert torch.equal(shrunk, values)
    assert torch.equal(values.grad, weights * share)
