"""Which tokens can be drawn."""

import math

import pytest
import torch

from glm_dist.errors import ConfigError
from glm_dist.generate.draw import next_token
from glm_dist.generate.sampling import GREEDY, Sampling

LOGITS = torch.tensor([0.1, 0.5, 0.2, 0.2]).log()


def drawn(sampling: Sampling) -> set[int]:
    """Tokens met in 300 draws; the rarest of LOGITS is missed with probability 0.9^300 < 1e-13."""
    generator = torch.Generator().manual_seed(0)
    return {next_token(LOGITS, sampling, generator=generator) for _ in range(300)}


def test_greedy_takes_the_likeliest() -> None:
    assert next_token(LOGITS, GREEDY) == 1


def test_all_tokens_can_be_drawn_without_limits() -> None:
    assert drawn(Sampling(temperature=1.0, top_k=0)) == {0, 1, 2, 3}


def test_top_k_keeps_k_tokens() -> None:
    assert drawn(Sampling(temperature=1.0, top_k=1)) == {1}


def test_top_p_keeps_the_token_that_reaches_p() -> None:
    # 0.5 < 0.6, so the next likeliest is kept too, but no third
    kept = drawn(Sampling(temperature=1.0, top_k=0, top_p=0.6))
    assert 1 in kept
    assert len(kept) == 2


@pytest.mark.parametrize("top_p", [0.01, 1e-46, 5e-324])
def test_the_likeliest_is_always_kept(top_p: float) -> None:
    assert drawn(Sampling(temperature=1.0, top_k=0, top_p=top_p)) == {1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 1e-46, 5e-324])
def test_the_smaller_the_temperature_the_nearer_to_greedy(temperature: float) -> None:
    assert drawn(Sampling(temperature=temperature, top_k=0)) == {1}


def test_the_same_seed_draws_the_same() -> None:
    sampling = Sampling(temperature=1.0, top_k=0)
    first, second = (
        [next_token(LOGITS, sampling, generator=g) for _ in range(20)]
        for g in (torch.Generator().manual_seed(5), torch.Generator().manual_seed(5))
    )
    assert first == second


@pytest.mark.parametrize(
    "numbers",
    [
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
    ids=str,
)
def test_numbers_without_meaning_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(numbers)).replace('_', '-')}"):
        Sampling(**numbers)
