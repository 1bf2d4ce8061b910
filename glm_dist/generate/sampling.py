"""Choosing the next token from logits: greedy, or temperature with top-k and top-p."""

import math
from dataclasses import dataclass

import torch

from glm_dist.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 0.9
    """Divides the logits; 0 is greedy. Official script: 0.9."""
    top_k: int = 40
    """Only the k most likely tokens; 0 keeps all. Official script: 40."""
    top_p: float = 1.0
    """Only the most likely tokens that together reach this probability; 1 keeps all."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        for option, value, ok, needed in (
            ("--temperature", self.temperature, 0.0 <= self.temperature < math.inf, "0 or more"),
            ("--top-k", self.top_k, self.top_k >= 0, "0 or more"),
            ("--top-p", self.top_p, 0.0 < self.top_p <= 1.0, "more than 0 and at most 1"),
        ):
            if not ok:
                raise ConfigError(
                    f"{option}={value} must be {needed}.\n  Leave {option} out for the default.",
                    key=option,
                    value=value,
                    fix="",
                )


GREEDY = Sampling(temperature=0.0)


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
        ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0.0
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=generator))
