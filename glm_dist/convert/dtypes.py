"""Number formats of stored weights."""

import math

import torch

from glm_dist.config.schema import Dtype
from glm_dist.errors import CheckpointError

TORCH_DTYPES = {
    Dtype.fp16: torch.float16,
    Dtype.bf16: torch.bfloat16,
    Dtype.fp32: torch.float32,
}
NAMES = {torch_dtype: ours.value for ours, torch_dtype in TORCH_DTYPES.items()}


def cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert a weight to a dtype, perhaps its own.

    Args:
        name: For messages.
        tensor: Weight.
        dtype: One of ``NAMES``.

    Raises:
        CheckpointError: A value is not finite, or beyond the range of the dtype.
    """
    converted = tensor.to(dtype)
    if _is_finite(converted):
        return converted
    if not _is_finite(tensor):
        raise CheckpointError(
            f"{name} holds values that are not finite, as after a training that diverged.\n"
            "  Convert an earlier checkpoint.",
            key=name,
            value="not finite",
            fix="convert an earlier checkpoint",
        )
    largest = max(abs(float(end)) for end in tensor.aminmax())
    raise CheckpointError(
        f"{name} has values up to {largest:.3g}, beyond the range of {NAMES[dtype]}.\n"
        "  Write the weights with --dtype bf16.",
        key=name,
        value=largest,
        fix="--dtype bf16",
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Look at every value without a copy: a NaN is both the smallest and the largest value."""
    return all(math.isfinite(end) for end in tensor.aminmax())
