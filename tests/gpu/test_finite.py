"""The reduction that looks for a NaN before a save sees it on a GPU as well."""

import math

import pytest
import torch

from glm_dist.checkpoint.finite import non_finite
from tests.gpu.device import DEVICE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_element_is_found_on_a_gpu(value: float, dtype: torch.dtype) -> None:
    good, bad = (torch.ones(100_003, dtype=dtype, device=DEVICE) for _ in range(2))
    bad[77_777] = value
    largest = torch.full((9,), torch.finfo(dtype).max, dtype=dtype, device=DEVICE)
    assert non_finite({"good": [good, largest], "bad": [good, bad]}) == ["bad"]
