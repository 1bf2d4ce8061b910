"""Head and loss on a GPU, whole and cut over two ranks, against cross entropy in fp64."""

import pytest
import torch
import torch.distributed as dist

from glm_dist.model.head import head_loss
from tests.gpu.device import DEVICE
from tests.ranks import run_ranks
from tests.train.grid import rank_device

VOCAB, PADDED, HIDDEN, TARGETS = 4001, 4096, 64, 777
LOSS_TOLERANCE = {torch.bfloat16: 1e-3, torch.float16: 1e-4, torch.float32: 1e-6}
"""Relative; the rounding of logits averages out over the targets."""


def check_head(dtype: torch.dtype, *, is_fused: bool) -> None:
    """This rank's loss and gradients, in several chunks."""
    generator = torch.Generator().manual_seed(3)
    device = rank_device()
    hidden = torch.randn(TARGETS, HIDDEN, generator=generator).to(device, dtype)
    weight = torch.randn(PADDED, HIDDEN, generator=generator).mul(0.5).to(device, dtype)
    ids = torch.randint(0, VOCAB, (TARGETS,), generator=generator).to(device)
    exact_hidden, exact_weight = (x.double().requires_grad_() for x in (hidden, weight))
    logits = exact_hidden @ exact_weight[:VOCAB].t()
    expected = torch.nn.functional.cross_entropy(logits, ids, reduction="sum")
    expected.backward()
    ranks, rank = dist.get_world_size(), dist.get_rank()
    rows = slice(rank * PADDED // ranks, (rank + 1) * PADDED // ranks)
    shard = weight[rows].clone().requires_grad_()
    hidden.requires_grad_()

    found, _ = head_loss(
        hidden,
        shard,
        ids,
        vocab_size=VOCAB,
        group=dist.group.WORLD,
        chunk_elements=100 * PADDED // ranks,
        is_fused=is_fused,
    )
    found.backward()

    torch.testing.assert_close(
        found.detach(), expected.detach(), rtol=LOSS_TOLERANCE[dtype], atol=0
    )
    for ours, theirs in ((hidden.grad, exact_hidden.grad), (shard.grad, exact_weight.grad[rows])):
        assert ours.dtype is dtype
        atol = 16 * torch.finfo(dtype).eps * float(exact_weight.grad.abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_head_equals_cross_entropy_in_fp64(world_size: int) -> None:
    run_ranks(check_all, world_size=world_size, device=DEVICE)


def check_all() -> None:
    for dtype in LOSS_TOLERANCE:
        for is_fused in (False, True):
            check_head(dtype, is_fused=is_fused)
