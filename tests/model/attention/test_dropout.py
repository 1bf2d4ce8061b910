"""Statistics of the dropout mask: rate, independence, and what it depends on."""

import pytest
import torch

from glm_dist.model.attention.dropout import draw_words
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.layout import Coordinates
from glm_dist.parallel.rng import ATTENTION_STREAM, get_cuda_rng_tracker, seed_step
from tests.model.attention.dropout_mask import kept

RATES = (0.1, 0.25, 0.5)
ROWS, HEADS, LENGTH = 2, 4, 512
PAIRS = ROWS * HEADS * LENGTH**2
DEVIATIONS = 5
"""One statistic in 1.7 million lies farther from its mean."""


def words(step: int = 0, **coordinates: int):
    enable_cpu()
    axes = {"tensor": 0, "data": 0, "pipeline": 0} | coordinates
    seed_step(1, step, coordinates=Coordinates(**axes))
    return draw_words(ROWS, LENGTH, device=torch.device("cpu"))


def mask(rate: float, *, step: int = 0, layer: int = 3, heads: range = range(HEADS)):
    """True for dropped pairs [b, a, s, s]."""
    drawn = words(step)
    return ~kept(drawn.seed, drawn.keys, rate=rate, layer=layer, heads=heads)


def assert_rate(found: torch.Tensor, expected: float) -> None:
    """The share of True is the expected one to sampling error."""
    sigma = (expected * (1 - expected) / found.numel()) ** 0.5
    assert abs(float(found.double().mean()) - expected) < DEVIATIONS * sigma


def assert_binomial(counts: torch.Tensor, trials: int, rate: float) -> None:
    """Sum of squared standardised counts: chi square with as many degrees, mean n, variance 2 n."""
    variance = trials * rate * (1 - rate)
    statistic = float(((counts.double() - trials * rate) ** 2).sum() / variance)
    assert abs(statistic - counts.numel()) < DEVIATIONS * (2 * counts.numel()) ** 0.5


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_exact_to_sampling_error(rate: float) -> None:
    assert_rate(mask(rate), rate)


@pytest.mark.parametrize("rate", RATES)
def test_counts_of_queries_and_keys_are_binomial(rate: float) -> None:
    dropped = mask(rate)

    assert_binomial(dropped.sum(dim=3), LENGTH, rate)
    # Keys share their word over heads, queries do not: a key's count over all of them.
    assert_binomial(dropped.sum(dim=(1, 2)), HEADS * LENGTH, rate)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("dim", "lag"), [(3, 1), (3, 64), (2, 1), (2, 64), (1, 1), (0, 1)])
def test_two_pairs_are_independent(rate: float, dim: int, lag: int) -> None:
    dropped = mask(rate)

    both = dropped.narrow(dim, lag, dropped.size(dim) - lag) & dropped.narrow(
        dim, 0, dropped.size(dim) - lag
    )

    assert_rate(both, rate**2)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (2, 2), (1, 64), (128, 1)])
def test_rectangles_are_independent(rate: float, queries: int, keys: int) -> None:
    dropped = mask(rate)
    cuts = (slice(None, -keys), slice(keys, None))
    top, bottom = dropped[:, :, :-queries], dropped[:, :, queries:]
    corners = torch.stack([side[..., cut] for side in (top, bottom) for cut in cuts])

    assert_rate(corners.all(dim=0), rate**4)
    assert_rate(~corners.any(dim=0), (1 - rate) ** 4)
    # An even number of drops: a relation between the four products would show here first.
    assert_rate(corners.sum(dim=0) % 2 == 0, (1 + (1 - 2 * rate) ** 4) / 2)


@pytest.mark.parametrize("change", [{"step": 1}, {"layer": 4}, {"heads": range(4, 8)}], ids=str)
def test_steps_layers_and_heads_drop_independently(change: dict) -> None:
    assert_rate(mask(0.25) & mask(0.25, **change), 0.25**2)


def test_a_slice_of_the_heads_drops_what_the_whole_drops() -> None:
    assert torch.equal(mask(0.1, heads=range(2, 4)), mask(0.1)[:, 2:4])


def test_words_are_equal_on_tensor_ranks_and_differ_between_replicas_stages_and_micro_batches() -> (
    None
):
    first = words()
    second = draw_words(ROWS, LENGTH, device=torch.device("cpu"))
    others = [words(data=1), words(pipeline=1), words(step=1), second]

    assert torch.equal(words(tensor=1).keys, first.keys)
    assert torch.equal(words(tensor=1).seed, first.seed)
    for other in others:
        assert (other.seed != first.seed).all()
        assert float((other.keys == first.keys).double().mean()) < 0.01
    assert bool((first.keys & 1).all())
    assert 0.4 < float((first.keys < 0).double().mean()) < 0.6  # all 32 bits are drawn


def test_drawing_words_moves_no_other_stream() -> None:
    enable_cpu()
    draws = []
    for draw in (False, True):
        seed_step(1, 5, coordinates=Coordinates(tensor=0, data=0, pipeline=0))
        if draw:
            draw_words(ROWS, LENGTH, device=torch.device("cpu"))
        shared = torch.rand(3)
        with get_cuda_rng_tracker().fork():
            draws.append((shared, torch.rand(3)))
        assert ATTENTION_STREAM in get_cuda_rng_tracker().get_states()

    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
