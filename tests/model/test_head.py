"""Head and loss against torch's cross entropy over whole logits."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from glm_dist.model.head import head_logits, head_loss
from glm_dist.model.main_gradient import MAIN_GRADIENT, main_gradient
from tests.memory import PeakMemory
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


def uncompiled(check: Callable[..., Any], *arguments: Any) -> Any:
    """Run a check with the bodies of compiled functions as they are written."""
    with torch.compiler.set_stance("force_eager"):
        return check(*arguments)


def check_head(
    chunk_elements: int,
    vocab_size: int = VOCAB,
    is_fused: bool = False,
    has_main_gradient: bool = False,
) -> None:
    """This rank's loss, gradients and logits against torch's on the whole table."""
    hidden, weight, ids = inputs()
    ids = ids % vocab_size
    hidden_ref = hidden.clone().requires_grad_()
    weight_ref = weight[:vocab_size].clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(hidden_ref @ weight_ref.t(), ids, reduction="sum")
    (expected * 0.25).backward()
    ranks, rank = dist.get_world_size(), dist.get_rank()
    rows = slice(rank * PADDED // ranks, (rank + 1) * PADDED // ranks)
    hidden = hidden.requires_grad_()
    shard = weight[rows].clone().requires_grad_()
    if has_main_gradient:
        setattr(shard, MAIN_GRADIENT, torch.ones_like(shard))

    found, _ = head_loss(
        hidden,
        shard,
        ids,
        vocab_size=vocab_size,
        group=dist.group.WORLD,
        chunk_elements=chunk_elements,
        is_fused=is_fused,
    )
    (found * 0.25).backward()

    torch.testing.assert_close(found.float(), expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(hidden.grad, hidden_ref.grad, rtol=0, atol=1e-5)
    whole = torch.zeros(PADDED, HIDDEN)
    whole[:vocab_size] = (
        weight_ref.grad
    )  # padded rows get no gradient: they are outside the softmax
    gradient = shard.grad
    if has_main_gradient:
        assert gradient is None
        gradient = main_gradient(shard) - 1.0
    torch.testing.assert_close(gradient, whole[rows], rtol=0, atol=1e-5)
    logits = head_logits(hidden, shard, vocab_size=vocab_size, group=dist.group.WORLD)
    torch.testing.assert_close(logits, (hidden_ref @ weight_ref.t()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_head_equals_cross_entropy_over_whole_logits(world_size: int) -> None:
    run_ranks(check_head, 1 << 24, world_size=world_size)


def test_chunks_do_not_change_the_loss() -> None:
    # 5 targets at a time on 2 ranks: 37 = 7 * 5 + 2
    run_ranks(check_head, 5 * PADDED // 2, world_size=2)


@pytest.mark.parametrize(
    ("world_size", "chunk_elements", "vocab_size"),
    [(1, 1 << 24, VOCAB), (2, 5 * PADDED // 2, VOCAB), (2, 1 << 24, 100)],
    ids=["whole", "two ranks, chunks", "a rank of padding"],
)
def test_the_fused_head_equals_cross_entropy_and_adds_to_a_main_gradient(
    world_size: int, chunk_elements: int, vocab_size: int
) -> None:
    arguments = chunk_elements, vocab_size, True, True
    run_ranks(uncompiled, check_head, *arguments, world_size=world_size)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_compiled_head_equals_cross_entropy() -> None:
    run_ranks(check_head, 1 << 24, VOCAB, True, world_size=1)


def check_smoothing(
    chunk_elements: int, vocab_size: int, is_fused: bool = False
) -> tuple[float, float]:
    """Relative differences of the smoothed and of the plain loss to torch's in fp64."""
    hidden, weight, ids = inputs()
    ids = ids % vocab_size
    exact_hidden, exact_weight = (x.double().requires_grad_() for x in (hidden, weight))
    logits = exact_hidden @ exact_weight[:vocab_size].t()
    expected = torch.nn.functional.cross_entropy(logits, ids, reduction="sum", label_smoothing=0.3)
    (expected * 0.25).backward()
    ranks, rank = dist.get_world_size(), dist.get_rank()
    rows = slice(rank * PADDED // ranks, (rank + 1) * PADDED // ranks)
    hidden, shard = hidden.requires_grad_(), weight[rows].clone().requires_grad_()

    found, by_group = head_loss(
        hidden,
        shard,
        ids,
        vocab_size=vocab_size,
        group=dist.group.WORLD,
        target_groups=torch.ones(1, TARGETS, dtype=torch.bool),
        label_smoothing=0.3,
        chunk_elements=chunk_elements,
        is_fused=is_fused,
    )
    (found * 0.25).backward()

    torch.testing.assert_close(hidden.grad.double(), exact_hidden.grad, rtol=0, atol=1e-5)
    torch.testing.assert_close(shard.grad.double(), exact_weight.grad[rows], rtol=0, atol=1e-5)
    dist.all_reduce(by_group)
    plain = torch.nn.functional.cross_entropy(logits, ids, reduction="sum")
    return float(found.detach() / expected.detach()) - 1, float(by_group / plain.detach()) - 1


@pytest.mark.parametrize(
    ("world_size", "chunk_elements", "vocab_size"),
    [(1, 1 << 24, VOCAB), (2, 5 * PADDED // 2, VOCAB), (2, 1 << 24, 100)],
    ids=["whole", "two ranks, chunks", "a rank of padding"],
)
def test_smoothing_shares_the_loss_among_real_tokens_alone(
    world_size: int, chunk_elements: int, vocab_size: int
) -> None:
    for is_fused in (False, True):
        arguments = chunk_elements, vocab_size, is_fused
        for found in run_ranks(uncompiled, check_smoothing, *arguments, world_size=world_size):
            assert found == pytest.approx((0.0, 0.0), abs=1e-6)


def check_no_targets() -> float:
    """Loss without a single target, backward included."""
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    weight = torch.randn(PADDED, HIDDEN, requires_grad=True)
    loss, _ = head_loss(
        hidden, weight, torch.zeros(0, dtype=torch.int64), vocab_size=VOCAB, group=dist.group.WORLD
    )
    loss.backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    return float(loss)


def test_a_batch_without_targets_has_loss_zero() -> None:
    assert run_ranks(check_no_targets, world_size=1) == [0.0]


def test_a_rank_may_hold_nothing_but_padding() -> None:
    # 256 rows over 2 ranks; all 100 tokens are on the first
    run_ranks(check_head, 1 << 24, 100, world_size=2)


def check_16_bits(is_fused: bool) -> None:
    """Loss and gradients of bf16 inputs against fp64 arithmetic on the same numbers."""
    hidden, weight, ids = (x.bfloat16() if x.is_floating_point() else x for x in inputs())
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = exact_hidden @ exact_weight[:VOCAB].t()
    expected = torch.nn.functional.cross_entropy(logits, ids, reduction="sum")
    expected.backward()

    # 3 targets at a time: the sum over 13 chunks must not be rounded 13 times
    found, _ = head_loss(
        hidden,
        weight,
        ids,
        vocab_size=VOCAB,
        group=dist.group.WORLD,
        chunk_elements=3 * PADDED,
        is_fused=is_fused,
    )
    found.backward()

    assert found.dtype is torch.float64
    # bf16 has 8 bits: a logit near 10 is off by up to 0.03
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=0)
    assert hidden.grad.dtype is weight.grad.dtype is torch.bfloat16
    torch.testing.assert_close(hidden.grad.double(), exact_hidden.grad, rtol=2e-2, atol=5e-2)
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, rtol=2e-2, atol=2e-2)


def check_scale() -> None:
    """A factor that bf16 cannot hold (it knows 1 and 1.0078) reaches all gradients in full."""
    hidden, weight, ids = (x.bfloat16() if x.is_floating_point() else x for x in inputs())
    gradients = []
    for factor in (1.0, 1.003):
        leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
        with_main = weight.detach().clone().requires_grad_()
        setattr(with_main, MAIN_GRADIENT, torch.zeros(weight.shape))
        for table in (leaves[1], with_main):
            loss, _ = head_loss(leaves[0], table, ids, vocab_size=VOCAB, group=dist.group.WORLD)
            (loss * factor).backward()
        gradients.append(
            [x.double() for x in (*(y.grad for y in leaves), main_gradient(with_main))]
        )
    for plain, scaled in zip(*gradients, strict=True):
        ratio = float((scaled.flatten() @ plain.flatten()) / plain.square().sum())
        assert ratio == pytest.approx(1.003, abs=2e-4)


def test_16_bits_are_summed_in_32() -> None:
    for is_fused in (False, True):
        run_ranks(uncompiled, check_16_bits, is_fused, world_size=1)


def test_the_scale_of_the_loss_is_not_rounded_to_16_bits() -> None:
    run_ranks(check_scale, world_size=1)


def peak_bytes(num_targets: int, vocab_size: int, chunk_elements: int) -> int:
    """Most bytes alive in forward and backward, without the inputs."""
    hidden = torch.randn(num_targets, 4, requires_grad=True)
    weight = torch.randn(vocab_size, 4, requires_grad=True)
    ids = torch.randint(0, vocab_size, (num_targets,))
    with PeakMemory() as memory:
        loss, _ = head_loss(
            hidden,
            weight,
            ids,
            vocab_size=vocab_size,
            group=dist.group.WORLD,
            chunk_elements=chunk_elements,
        )
        loss.backward()
    return memory.peak


def check_memory() -> dict[str, int]:
    """Peaks of one problem and of its larger variants."""
    peak_bytes(8, 64, 1 << 10)  # the first call makes things that stay
    return {
        "base": peak_bytes(256, 1024, 1 << 14),
        "targets": peak_bytes(8 * 256, 1024, 1 << 14),
        "vocabulary": peak_bytes(256, 8 * 1024, 1 << 14),
        "both": peak_bytes(8 * 256, 8 * 1024, 1 << 14),
    }


def test_memory_does_not_grow_with_vocabulary_times_targets() -> None:
    (peaks,) = run_ranks(check_memory, world_size=1)

    # Logits of a chunk (2^14 fp32) exist at most twice, plus their log-softmax.
    assert peaks["base"] < 3 * 4 * 2**14 + 4 * (256 + 1024) * 4 + 2**13
    # More targets add gradients of hidden states [n, 4], more words gradients of the table [v, 4].
    assert peaks["targets"] - peaks["base"] <= 4 * 7 * 256 * 4 + 2**12
    assert peaks["vocabulary"] - peaks["base"] <= 4 * 7 * 1024 * 4 + 2**12
    # Both together cost what each costs alone: 8 * 8 times the logits add nothing.
    assert peaks["both"] <= peaks["targets"] + peaks["vocabulary"] - peaks["base"] + 2**12
