"""Tied vocabulary-parallel head fused with cross entropy, computed only at targets.

Logits never exist for a whole row, nor for all targets at once: they are computed in chunks, turned
into loss and gradient immediately, and freed. Padded vocabulary rows are excluded from the softmax,
so the padding (and with it the tensor-parallel size) does not change the model.

Letters: n targets, c of a chunk; h hidden; v/t vocabulary rows of this rank, r of them multiplied.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist

from glm_dist.model.cross_entropy import (
    Terms,
    Vocabulary,
    head_rows,
    sum_dtype,
    terms_fused,
    terms_one_by_one,
)
from glm_dist.model.main_gradient import add_product, arrived, main_gradient

CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 26, "meta": 1 << 26}
"""Logits held at once on a rank: 32 MiB in fp32 on a CPU, 256 MiB on a GPU. Enough for the full
speed of the matrix products; more only costs memory (docs/performance.md). Meta tensors stand for
a GPU's."""


class _HeadLoss(torch.autograd.Function):
    """Sum of cross entropies; gradients are computed in forward, while the logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target_ids: torch.Tensor,
        target_groups: torch.Tensor,
        vocabulary: Vocabulary,
        terms_of: Callable[..., Terms],
        needs_gradient: bool,
        chunk_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        group, smoothing = vocabulary.group, vocabulary.label_smoothing
        first_row = group.rank() * weight.size(0)
        is_fused = terms_of is terms_fused
        rows = head_rows(weight, vocabulary.num_real, is_fused=is_fused)  # [r, h]
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
            terms = terms_of(
                hidden[part] @ rows.t(),  # [c, h] -> [c, r]
                target_ids[part] - first_row,
                vocabulary,
                needs_gradient=needs_gradient,
            )
            found = terms.found.double()
            total -= (1 - smoothing) * found.sum()
            if terms.total is not None:
                total -= (smoothing / vocabulary.size) * terms.total.double().sum()
            by_group -= target_groups[:, part].double() @ found
            if hidden_gradient is None or terms.gradient is None or rows.size(0) == 0:
                continue
            torch.mm(terms.gradient, rows, out=hidden_gradient[part])
            if weight_gradient is not None:
                add_product(weight_gradient[: rows.size(0)], terms.gradient.t(), hidden[part])
            del terms  # else the gradient lives on beside the next chunk's logits
        if group.size() > 1:
            dist.all_reduce(total, group=group)
            if hidden_gradient is not None:
                dist.all_reduce(hidden_gradient, group=group)
        ctx.gradients = hidden_gradient, weight_gradient
        ctx.weight = weight
        ctx.mark_non_differentiable(by_group)
        return total, by_group

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.gradients
        del ctx.gradients
        if weight_gradient is not None:
            weight_gradient = _deliver(ctx.weight, weight_gradient, scale)
        return _scaled(hidden_gradient, scale), weight_gradient, *(None,) * 6


def _deliver(
    weight: torch.Tensor, gradient: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor | None:
    """Add the table's scaled gradient to its main gradient, or return it for autograd.

    The scale arrives with backward. The sum made in forward is therefore a tensor of its own, and
    one pass adds it, scaled in fp32, to the main gradient. Keeping the gradients of the logits and
    multiplying in backward would save that pass, but the scale would have to be rounded into a
    16-bit factor, and memory would grow with the number of targets.
    """
    main = main_gradient(weight)
    if main is None:
        # In place: the table's gradient is the largest tensor of a step.
        return _scaled(gradient, scale).to(weight.dtype)
    main.addcmul_(gradient, scale.to(gradient.dtype))
    arrived(weight)
    return None


def _scaled(gradient: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply, in place if nothing is rounded; the scale itself may not fit into 16 bits."""
    wide = sum_dtype(gradient.dtype)
    return gradient.to(wide).mul_(scale.to(wide)).to(gradient.dtype)


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
    is_fused: bool = False,
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
        is_fused: Compute each chunk by compiled functions (``compile.pointwise``).

    Returns:
        The sum [], equal on every rank of the group; and the sums by group [g] over the targets
        whose token this rank holds, which add up over ranks. Only the first has a gradient.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    elements = chunk_elements or CHUNK_ELEMENTS[hidden.device.type]
    if target_groups is None:
        target_groups = target_ids.new_empty((0, target_ids.numel()), dtype=torch.bool)
    num_real = min(max(vocab_size - group.rank() * weight.size(0), 0), weight.size(0))
    total, by_group = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden,
        weight,
        target_ids,
        target_groups,
        Vocabulary(num_real, vocab_size, group, label_smoothing),
        terms_fused if is_fused and num_real > 0 else terms_one_by_one,
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
