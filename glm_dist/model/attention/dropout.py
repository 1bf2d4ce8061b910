"""Dropout of attention weights without a random state: words of query and key decide on a pair.

Each query of each head and layer has an odd 32-bit word, each key of a row another. The pair (i, j)
is dropped iff the product of its words, modulo 2^32 and read as a signed number, is below a
threshold.

- The words of the keys are drawn once for a micro-batch. The word of a query is a hash of the
  micro-batch's seed, the global layer, the global head, row and position. So the forward pass, both
  kernels of the backward pass and a recomputation see the same mask, with any tensor-parallel size.
- Odd numbers form a group under multiplication, so the product is uniform if one word is: the rate
  is exact to 2^-31, and two pairs that differ in a query or a key are independent.
- In a rectangle of two queries and two keys the fourth product follows from the other three, but
  its high bits depend on all of their bits, of which the decisions reveal only the highest.
- A pair costs one multiplication and one comparison. A hash of every pair, with two multiplications
  and two shifts, made attention with dropout 2.5 times as slow as without.
"""

from dataclasses import dataclass

import torch

from glm_dist.parallel.rng import ATTENTION_STREAM, get_cuda_rng_tracker


@dataclass(frozen=True)
class DropoutWords:
    """Random words of one micro-batch, the same on all tensor-parallel ranks."""

    seed: torch.Tensor
    """Seed of the queries' words, int32 [2]."""
    keys: torch.Tensor
    """Odd words of the keys, int32 [b, s]."""


def draw_words(num_rows: int, row_length: int, *, device: torch.device) -> DropoutWords:
    """Draw the words of the next micro-batch from the step's stream, on the device.

    Args:
        num_rows: b.
        row_length: s.
        device: Device of the kernels.
    """
    count = num_rows * row_length
    with get_cuda_rng_tracker().fork(ATTENTION_STREAM):
        words = torch.empty(count + 2, dtype=torch.int32, device=device)
        words.random_(-(2**31), 2**31).bitwise_or_(1)
    return DropoutWords(seed=words[count:], keys=words[:count].view(num_rows, row_length))
