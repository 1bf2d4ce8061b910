"""Tied vocabulary-parallel head and cross entropy, together and only where there is a target.

Logits never exist for all of a row, nor for all targets at once: they are made in chunks, turned
into loss and gradient right away, and dropped. Padded vocabulary rows stay outside the softmax, so
the padding (and with it the tensor-parallel size) does not change the model.
"""

from typing import Any

import torch
from torch import distributed as dist

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once on a rank: 64 MiB in fp32."""


class _HeadLoss(torch.autograd.Function):
    """Sum of cross entropies; gradients are finished in forward, where the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target_ids: torch.Tensor,
        vocab_size: int,
        group: dist.ProcessGroup,
        needs_gradient: bool,
    ) -> torch.Tensor:
        rows = weight.size(0)
        first_row = group.rank() * rows
        real_rows = min(max(vocab_size - first_row, 0), rows)
        hidden_gradient = torch.zeros_like(hidden) if needs_gradient else None
        weight_gradient = (
            torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            if needs_gradient
            else None
        )
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        chunk = max(CHUNK_ELEMENTS // rows, 1)
        for start in range(0, hidden.size(0), chunk):
            part = slice(start, start + chunk)
            losses, logit_gradient = _chunk_loss(
                hidden[part], weight, target_ids[part] - first_row, real_rows=real_rows, group=group
            )
            total += losses.sum(dtype=torch.float64)
            if hidden_gradient is not None and weight_gradient is not None:
                logit_gradient = logit_gradient.to(hidden.dtype)
                hidden_gradient[part] = logit_gradient @ weight
                weight_gradient += logit_gradient.t() @ hidden[part]
        if hidden_gradient is not None and weight_gradient is not None:
            dist.all_reduce(hidden_gradient, group=group)
            ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            hidden_gradient * scale.to(hidden_gradient.dtype),
            weight_gradient * scale.to(weight_gradient.dtype),
            None,
            None,
            None,
            None,
        )


def _chunk_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    local_ids: torch.Tensor,
    *,
    real_rows: int,
    group: dist.ProcessGroup,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy [n] of a chunk and its gradient [n, v/t] with respect to this rank's logits."""
    logits = (hidden @ weight.t()).float()  # [n, h] -> [n, v/t]
    logits[:, real_rows:] = float("-inf")
    peak = logits.amax(dim=1)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    logits -= peak.unsqueeze(1)
    here = (local_ids >= 0) & (local_ids < weight.size(0))
    column = torch.where(here, local_ids, 0).unsqueeze(1)
    target_logit = torch.where(here, logits.gather(1, column).squeeze(1), 0.0)
    exponentials = logits.exp_()
    sums = torch.stack([exponentials.sum(dim=1), target_logit])
    dist.all_reduce(sums, group=group)
    denominator, target_logit = sums[0], sums[1]
    losses = denominator.log() - target_logit
    gradient = exponentials.div_(denominator.unsqueeze(1))
    gradient.scatter_add_(1, column, -here.to(gradient.dtype).unsqueeze(1))
    return losses, gradient


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target_ids: torch.Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
) -> torch.Tensor:
    """Sum over targets of -log p(target), natural logarithm.

    Each loss is computed in fp32; their sum is fp64, since a step adds up many thousands.

    Args:
        hidden: Final hidden states at the targets [n, h].
        weight: This rank's rows of the word embedding [v/t, h].
        target_ids: Token ids to predict [n], each below vocab_size.
        vocab_size: Tokens that exist; rows from here on are padding.
        group: Ranks that share the vocabulary.

    Returns:
        [] on every rank of the group.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss: torch.Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, target_ids, vocab_size, group, needs_gradient
    )
    return loss


def head_logits(
    hidden: torch.Tensor, weight: torch.Tensor, *, vocab_size: int, group: dist.ProcessGroup
) -> torch.Tensor:
    """Full vocabulary logits, for generation and evaluation.

    Args:
        hidden: [n, h].
        weight: This rank's rows of the word embedding [v/t, h].
        vocab_size: Tokens that exist.
        group: Ranks that share the vocabulary.

    Returns:
        [n, vocab_size] in fp32, equal on every rank of the group.
    """
    local = (hidden @ weight.t()).float().contiguous()  # [n, v/t]
    if group.size() > 1:
        shards = [torch.empty_like(local) for _ in range(group.size())]
        dist.all_gather(shards, local, group=group)
        local = torch.cat(shards, dim=1)  # [n, v]
    return local[:, :vocab_size]
