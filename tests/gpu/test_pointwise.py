"""Fused operations compiled for a GPU, against their definitions in fp64."""

import pytest
import torch

from tests.gpu.device import DEVICE
from tests.model.operations import OPERATIONS, check_dropout, check_operation

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fused_operation_equals_its_definition(name: str, dtype: torch.dtype) -> None:
    check_operation(name, dtype, device=DEVICE)


def test_dropout_repeats_and_drops_as_many_as_it_should() -> None:
    check_dropout(device=DEVICE)
