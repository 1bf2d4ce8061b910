"""Choosing the next token from logits."""

from collections.abc import Collection

import torch

from glm_dist.generate.sampling import Sampling


def penalize(logits: torch.Tensor, tokens: Collection[int], penalty: float) -> None:
    """Make tokens that were used less likely, in place.

    Args:
        logits: [v].
        tokens: Ids that were used.
        penalty: See ``Sampling.repetition_penalty``.
    """
    if penalty != 1.0 and tokens:
        used = torch.tensor(sorted(tokens))
        found = logits[used]
        logits[used] = torch.where(found > 0, found / penalty, found * penalty)


def next_token(
    logits: torch.Tensor, sampling: Sampling, *, generator: torch.Generator | None = None
) -> int:
    """Draw one token.

    Args:
        logits: [v], fp32.
        sampling: How to draw.
        generator: Source of randomness; unused when greedy.
    """
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    # No temperature is too small: the largest becomes 0, and what leaves fp32 below is never drawn.
    scaled = ((logits - logits.max()).double() / sampling.temperature).float()
    if sampling.top_k > 0:
        kept = scaled.topk(min(sampling.top_k, scaled.numel()))
        scaled = torch.full_like(scaled, float("-inf")).scatter(0, kept.indices, kept.values)
    probabilities = scaled.softmax(dim=0)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        # A token stays if those before it have not yet reached top_p; the first always does.
        is_late = ordered.cumsum(0) - ordered >= sampling.top_p
        is_late[0] = False  # as no top_p is too small
        ordered[is_late] = 0.0
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=generator))
