"""Options of generating text: how tokens are chosen and when an answer ends. No torch."""

import math
from dataclasses import dataclass, field
from enum import Enum

from glm_dist.errors import ConfigError


def _check(option: str, value: object, ok: bool, needed: str) -> None:
    if not ok:
        raise ConfigError(
            f"{option}={value} must be {needed}.\n  Leave {option} out for the default.",
            key=option,
            value=value,
            fix="",
        )


def check_length_penalty(penalty: float) -> None:
    """Refuse a power with which no lengths are compared.

    Raises:
        ConfigError: It is not from -10 to 10.
    """
    _check("--length-penalty", penalty, -10.0 <= penalty <= 10.0, "a number from -10 to 10")


class Cut(Enum):
    """End of a text that gives way where the text is too long."""

    left = "left"
    right = "right"


@dataclass(frozen=True)
class Sampling:
    """Options for drawing tokens."""

    temperature: float = 0.9
    """Divides the logits; 0 is greedy. Official script: 0.9."""
    top_k: int = 40
    """Only the k most likely tokens; 0 keeps all. Official script: 40."""
    top_p: float = 1.0
    """Only the most likely tokens that together reach this probability; 1 keeps all."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the text or an answer holds already are divided by this if they are
    positive, else multiplied (arXiv 1909.05858); 1 changes nothing."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        _check(
            "--temperature",
            self.temperature,
            0.0 <= self.temperature < math.inf,
            "finite, 0 or more",
        )
        _check("--top-k", self.top_k, self.top_k >= 0, "0 or more")
        _check("--top-p", self.top_p, 0.0 < self.top_p <= 1.0, "more than 0 and at most 1")
        penalty = self.repetition_penalty
        _check("--repetition-penalty", penalty, 0.0 < penalty < math.inf, "finite, more than 0")


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class BeamSearch:
    """Options of beam search, which draws nothing."""

    beams: int = 4
    """Unfinished answers that are followed."""
    length_penalty: float = 1.0
    """Answers are compared by log-probability / tokens ^ penalty; 0 compares log-probabilities."""
    no_repeat_ngram: int = 0
    """No n tokens in a row occur twice in an answer; 0 allows it."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        _check("--beams", self.beams, self.beams >= 1, "1 or more")
        check_length_penalty(self.length_penalty)
        _check("--no-repeat-ngram", self.no_repeat_ngram, self.no_repeat_ngram >= 0, "0 or more")


@dataclass(frozen=True)
class GenerationOptions:
    """Options of writing the answers of blanks."""

    sampling: Sampling = GREEDY
    beam_search: BeamSearch | None = None
    """Instead of ``sampling``."""
    max_tokens: int = 64
    """Longest answer of a blank."""
    min_tokens: int = 0
    """Shortest answer of a blank, unless a stop string ends it."""
    stop: tuple[str, ...] = field(default=())
    """Texts that end an answer, which then ends before the first of them."""
    truncate: Cut | None = None
    """End at which a text that is too long is shortened; None: it is an error. Blanks are never
    cut."""
    seed: int = 0
    """Of the draws; every text begins with it, so an answer does not depend on its neighbours."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        _check("--max-tokens", self.max_tokens, self.max_tokens >= 1, "1 or more")
        is_between = 0 <= self.min_tokens <= self.max_tokens
        _check("--min-tokens", self.min_tokens, is_between, f"0 to --max-tokens {self.max_tokens}")
        _check("--stop", "''", all(self.stop), "a text of at least one character")
