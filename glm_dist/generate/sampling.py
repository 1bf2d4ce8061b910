"""Options of drawing tokens: greedy, or temperature with top-k and top-p. No torch."""

import math
from dataclasses import dataclass

from glm_dist.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """Options for drawing tokens."""

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
