"""Scores of targets against torch's log_softmax over whole logits."""

import pytest
import torch
import torch.distributed as dist

from glm_dist.model.cross_entropy import log_probabilities
from glm_dist.model.main_gradient import MAIN_GRADIENT, main_gradient
from glm_dist.model.scores import head_scores
from tests.model.test_head import HIDDEN, PADDED, TARGETS, VOCAB, inputs
from tests.ranks import run_ranks


def check_scores(
    chunk_elements: int, vocab_size: int = VOCAB, has_main_gradient: bool = False
) -> None:
    """This rank's scores and gradients against torch's on the whole table."""
    hidden, weight, ids = inputs()
    weight[7] = weight[3]  # two tokens with equal logits
    ids = ids % vocab_size
    factors = torch.linspace(-1, 2, TARGETS)  # each score has a factor of its own
    logits = hidden @ weight[:vocab_size].t()
    ids[5:20] = logits.argmax(dim=1)[5:20]
    ids[5:20:4] = 7
    hidden_ref = hidden.clone().requires_grad_()
    weight_ref = weight[:vocab_size].clone().requires_grad_()
    expected = (hidden_ref @ weight_ref.t()).log_softmax(dim=1)[torch.arange(TARGETS), ids]
    (expected * factors).sum().backward()
    ranks, rank = dist.get_world_size(), dist.get_rank()
    rows = slice(rank * PADDED // ranks, (rank + 1) * PADDED // ranks)
    hidden = hidden.requires_grad_()
    shard = weight[rows].clone().requires_grad_()
    if has_main_gradient:
        setattr(shard, MAIN_GRADIENT, torch.ones_like(shard))

    found = head_scores(
        hidden,
        shard,
        ids,
        vocab_size=vocab_size,
        group=dist.group.WORLD,
        chunk_elements=chunk_elements,
    )
    (found.log_probability * factors).sum().backward()

    torch.testing.assert_close(found.log_probability, expected, rtol=1e-6, atol=1e-6)
    assert found.is_likeliest.tolist() == (logits.argmax(dim=1) == ids).tolist()
    assert 10 < found.is_likeliest.sum() < TARGETS
    torch.testing.assert_close(hidden.grad, hidden_ref.grad, rtol=1e-6, atol=1e-6)
    whole = torch.zeros(PADDED, HIDDEN)
    whole[:vocab_size] = weight_ref.grad
    gradient = shard.grad
    if has_main_gradient:
        assert gradient is None
        gradient = main_gradient(shard) - 1.0
    torch.testing.assert_close(gradient, whole[rows], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("world_size", "chunk_elements", "vocab_size"),
    [(1, 1 << 24, VOCAB), (2, 1 << 24, VOCAB), (2, 5 * PADDED // 2, VOCAB), (2, 1 << 24, 100)],
    ids=["whole", "two ranks", "chunks", "a rank of padding"],
)
def test_scores_and_gradients_equal_those_of_whole_logits(
    world_size: int, chunk_elements: int, vocab_size: int
) -> None:
    for has_main_gradient in (False, True):
        arguments = chunk_elements, vocab_size, has_main_gradient
        run_ranks(check_scores, *arguments, world_size=world_size)


def check_padded_columns() -> None:
    """Log-probabilities from a product with padded rows too, as GPUs compute it."""
    hidden, weight, _ = inputs()
    group = dist.group.WORLD
    found = log_probabilities(hidden, weight, VOCAB, group=group)

    expected = log_probabilities(hidden, weight[:VOCAB], VOCAB, group=group)
    torch.testing.assert_close(found[:, :VOCAB], expected)
    assert torch.equal(found[:, VOCAB:], torch.full((TARGETS, PADDED - VOCAB), -torch.inf))


def test_padded_columns_have_no_probability() -> None:
    run_ranks(check_padded_columns, world_size=1)
