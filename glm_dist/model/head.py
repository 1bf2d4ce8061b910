"""Tied vocabulary-parallel head fused with cross entropy, computed only at targets.

Logits never exist for a whole row, nor for all targets at once: they are computed in chunks, turned
into loss and gradient immediately, and freed. Padded vocabulary rows are excluded from the softmax,
so the padding (and with it the tensor-parallel size) does not change the model.

Letters: n targets, c of a chunk; h hidden; v/t vocabulary rows of this rank, r of them real.
"""

from typing import Any

import torch
from torch import distributed as dist

from glm_dist.model.main_gradient import add_product

CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 26}
"""Logits held at once on a rank: 32 MiB in fp32 on a CPU, 256 MiB on a GPU. Enough for the full
speed of the matrix products; more only costs memory (docs/performance.md)."""


class _HeadLoss(torch.autograd.Function):
    """Sum of cross entropies; gradients are computed in forward, while the logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target_ids: torch.Tensor,
        vocab_size: int,
        group: dist.ProcessGroup,
        target_groups: torch.Tensor,
        label_smoothing: float,
        needs_gradient: bool,
        chunk_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first_row = group.rank() * weight.size(0)
        real = weight[: max(vocab_size - first_row, 0)]  # [r, h]
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        by_group = total.new_zeros(target_groups.size(0))
        hidden_gradient = weight_gradient = None
        if needs_gradient:
            hidden_gradient = torch.zeros_like(hidden)
            if ctx.needs_input_grad[1]:  # else the table is frozen
                weight_gradient = torch.zeros(
                    weight.shape, dtype=sum_dtype(weight.dtype), device=weight.device
                )
        for start in range(0, hidden.size(0), chunk_size):
            part = slice(start, start + chunk_size)
            local_ids = target_ids[part] - first_row
            log_p = log_probabilities(hidden[part], real, group=group)  # [c, r]
            if real.size(0) == 0:
                continue
            here = (local_ids >= 0) & (local_ids < real.size(0))
            column = local_ids.where(here, 0).unsqueeze(1)
            found = log_p.gather(1, column).squeeze(1).where(here, 0.0).double()  # [c]
            total -= (1 - label_smoothing) * found.sum()
            if label_smoothing > 0.0:
                total -= (label_smoothing / vocab_size) * log_p.sum(dim=1).double().sum()
            by_group -= target_groups[:, part].double() @ found
            if hidden_gradient is None:
                continue
            # Probabilities less the distribution that the loss aims at.
            logit_gradient = log_p.exp_()
            aim = here.to(log_p.dtype).mul_(1 - label_smoothing).unsqueeze(1)
            logit_gradient.scatter_add_(1, column, -aim)
            if label_smoothing > 0.0:
                logit_gradient -= label_smoothing / vocab_size
            logit_gradient = logit_gradient.to(hidden.dtype)
            torch.mm(logit_gradient, real, out=hidden_gradient[part])
            if weight_gradient is not None:
                add_product(weight_gradient[: real.size(0)], logit_gradient.t(), hidden[part])
        if group.size() > 1:
            dist.all_reduce(total, group=group)
            if hidden_gradient is not None:
                dist.all_reduce(hidden_gradient, group=group)
        ctx.gradients = hidden_gradient, weight_gradient
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(by_group)
        return total, by_group

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Scaled in place without a copy: the table's gradient is the largest tensor of a step.
        hidden_gradient, weight_gradient = ctx.gradients
        del ctx.gradients
        if weight_gradient is not None:
            weight_gradient = _scaled(weight_gradient, scale).to(ctx.weight_dtype)
        return _scaled(hidden_gradient, scale), weight_gradient, *(None,) * 7


def _scaled(gradient: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply, in place if nothing is rounded; the scale itself may not fit into 16 bits."""
    wide = sum_dtype(gradient.dtype)
    return gradient.to(wide).mul_(scale.to(wide)).to(gradient.dtype)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: fp32 for 16-bit numbers."""
    return torch.promote_types(dtype, torch.float32)


def log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, *, group: dist.ProcessGroup
) -> torch.Tensor:
    """Return log probabilities [c, r] of this rank's tokens, over the vocabulary of all ranks."""
    logits = hidden @ weight.t()  # [c, h] -> [c, r]
    if group.size() == 1:
        return torch.log_softmax(logits, dim=1, dtype=sum_dtype(logits.dtype))
    logits = logits.to(sum_dtype(logits.dtype))
    local = logits.logsumexp(dim=1)  # [c], -inf if a rank holds only padding
    peak = local.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    total = (local - peak).exp_()
    dist.all_reduce(total, group=group)
    return logits.sub_(total.log_().add_(peak).unsqueeze(1))


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target_ids: torch.Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    target_groups: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk_elements: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum -log p(target) over targets, in nats, in total and by group of targets.

    Each loss is computed in fp32; their sum is fp64, since a step adds up many thousands. With
    smoothing the total is the cross entropy of a distribution that gives ``1 - label_smoothing`` to
    the target and the rest to all real tokens alike; sums by group are never smoothed.

    Args:
        hidden: Final hidden states at the targets [n, h].
        weight: This rank's rows of the word embedding [v/t, h].
        target_ids: Token ids to predict [n], each below vocab_size.
        vocab_size: Tokens that exist; later rows are padding.
        group: Ranks that share the vocabulary.
        target_groups: Members of each group [g, n], bool; None: no groups.
        label_smoothing: Share of all tokens alike, from 0 to below 1.
        chunk_elements: Logits held at once; None: ``CHUNK_ELEMENTS`` of the device.

    Returns:
        The sum [], equal on every rank of the group; and the sums by group [g] over the targets
        whose token this rank holds, which add up over ranks. Only the first has a gradient.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    elements = chunk_elements or CHUNK_ELEMENTS[hidden.device.type]
    if target_groups is None:
        target_groups = target_ids.new_empty((0, target_ids.numel()), dtype=torch.bool)
    total, by_group = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden,
        weight,
        target_ids,
        vocab_size,
        group,
        target_groups,
        label_smoothing,
        needs_gradient,
        max(elements // weight.size(0), 1),
    )
    return total, by_group


def head_logits(
    hidden: torch.Tensor, weight: torch.Tensor, *, vocab_size: int, group: dist.ProcessGroup
) -> torch.Tensor:
    """Return logits over the whole vocabulary, for generation and evaluation.

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
