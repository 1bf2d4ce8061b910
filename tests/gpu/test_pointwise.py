"""Fused operations compiled for a GPU, against their definitions in fp64."""

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from glm_dist.model.norm import layer_norm_class
from glm_dist.model.pointwise import ONE_BY_ONE
from tests.gpu.device import DEVICE
from tests.model.operations import (
    OPERATIONS,
    Operation,
    check_dropout,
    check_operation,
    inputs_of,
    results,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fused_operation_equals_its_definition(name: str, dtype: torch.dtype) -> None:
    check_operation(name, dtype, device=DEVICE)


def test_dropout_repeats_and_drops_as_many_as_it_should() -> None:
    check_dropout(device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_norm_of_this_machine_equals_its_definition(dtype: torch.dtype) -> None:
    """TransformerEngine's or apex's where installed; else torch's, through our module."""
    config = TransformerConfig(
        num_layers=1, hidden_size=64, num_attention_heads=1, params_dtype=dtype
    )
    norm = layer_norm_class(torch.device(DEVICE))(config=config, hidden_size=64, eps=1e-5)
    norm = norm.to(DEVICE, dtype)
    operation = Operation(lambda _, x, w, b: norm(x), ("x",))
    (hidden,) = inputs_of(operation, dtype, device=DEVICE, sizes=(5, 3, 64))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(64, generator=generator))
    inputs = [hidden, norm.weight, norm.bias]
    exact = [x.detach().double().requires_grad_() for x in inputs]

    found = results(operation, ONE_BY_ONE, inputs)
    expected = results(OPERATIONS["layer_norm"], ONE_BY_ONE, exact)

    for ours, theirs in zip(found, expected, strict=True):
        # Libraries may round the sums over rows twice.
        atol = 4 * torch.finfo(dtype).eps * float(theirs.detach().abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=atol)
