"""Head and loss against torch's cross entropy over whole logits."""

import pytest
import torch
import torch.distributed as dist

from glm_dist.model import loss as loss_module
from glm_dist.model.loss import head_logits, head_loss
from tests.ranks import run_ranks

VOCAB, PADDED, HIDDEN, TARGETS = 251, 256, 8, 37


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [n, h], word table [v, h], target ids [n]; equal on every rank."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TARGETS, HIDDEN, generator=generator)
    weight = torch.randn(PADDED, HIDDEN, generator=generator)
    ids = torch.randint(0, VOCAB, (TARGETS,), generator=generator)
    ids[:2] = torch.tensor([0, VOCAB - 1])
    return hidden, weight, ids


def check_head(chunk_elements: int) -> None:
    """This rank's loss, gradients and logits against torch's on the whole table."""
    loss_module.CHUNK_ELEMENTS = chunk_elements
    hidden, weight, ids = inputs()
    hidden_ref = hidden.clone().requires_grad_()
    weight_ref = weight[:VOCAB].clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(hidden_ref @ weight_ref.t(), ids, reduction="sum")
    (expected * 0.25).backward()
    ranks, rank = dist.get_world_size(), dist.get_rank()
    rows = slice(rank * PADDED // ranks, (rank + 1) * PADDED // ranks)
    hidden = hidden.requires_grad_()
    shard = weight[rows].clone().requires_grad_()

    found = head_loss(hidden, shard, ids, vocab_size=VOCAB, group=dist.group.WORLD)
    (found * 0.25).backward()

    torch.testing.assert_close(found.float(), expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(hidden.grad, hidden_ref.grad, rtol=0, atol=1e-5)
    whole = torch.zeros(PADDED, HIDDEN)
    whole[:VOCAB] = weight_ref.grad  # padded rows get no gradient: they are outside the softmax
    torch.testing.assert_close(shard.grad, whole[rows], rtol=0, atol=1e-5)
    logits = head_logits(hidden, shard, vocab_size=VOCAB, group=dist.group.WORLD)
    torch.testing.assert_close(logits, (hidden_ref @ weight_ref.t()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_head_equals_cross_entropy_over_whole_logits(world_size: int) -> None:
    run_ranks(check_head, 1 << 24, world_size=world_size)


def test_chunks_do_not_change_the_loss() -> None:
    # 5 targets at a time on 2 ranks: 37 = 7 * 5 + 2
    run_ranks(check_head, 5 * PADDED // 2, world_size=2)


def check_no_targets() -> float:
    """Loss without a single target, backward included."""
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    weight = torch.randn(PADDED, HIDDEN, requires_grad=True)
    loss = head_loss(
        hidden, weight, torch.zeros(0, dtype=torch.int64), vocab_size=VOCAB, group=dist.group.WORLD
    )
    loss.backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    return float(loss)


def test_a_batch_without_targets_has_loss_zero() -> None:
    assert run_ranks(check_no_targets, world_size=1) == [0.0]
