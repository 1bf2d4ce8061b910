"""Scores of targets: log-probability, with a gradient, and whether a target is the likeliest token.

Vocabulary-parallel and in chunks like ``head.py``, but for each target by itself: what multiplies a
score's gradient may depend on all scores, so backward computes the logits of each chunk again.

Letters: n targets, c of a chunk; h hidden; v/t vocabulary rows of this rank, r of them multiplied.
"""

from typing import Any, NamedTuple

import torch
from torch import distributed as dist

from glm_dist.model.cross_entropy import head_rows, log_probabilities, sum_dtype
from glm_dist.model.head import CHUNK_ELEMENTS
from glm_dist.model.main_gradient import add_product, arrived, main_gradient


class Scores(NamedTuple):
    """Scores of targets, equal on every rank that shares the vocabulary."""

    log_probability: torch.Tensor
    """Natural logarithm [n] in fp32."""
    is_likeliest: torch.Tensor
    """True where no token has a larger logit, and no smaller id the same [n]."""


def head_scores(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target_ids: torch.Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    chunk_elements: int | None = None,
) -> Scores:
    """Score targets. Only the log-probabilities have a gradient.

    Args:
        hidden: Final hidden states at the targets [n, h].
        weight: This rank's rows of the word embedding [v/t, h].
        target_ids: Token ids [n], each below vocab_size.
        vocab_size: Tokens that exist; later rows are padding.
        group: Ranks that share the vocabulary.
        chunk_elements: Logits held at once; None: ``CHUNK_ELEMENTS`` of the device.
    """
    elements = chunk_elements or CHUNK_ELEMENTS[hidden.device.type]
    chunk_size = max(elements // weight.size(0), 1)
    found = _HeadScores.apply(  # type: ignore[no-untyped-call]
        hidden, weight, target_ids, vocab_size, group, chunk_size
    )
    return Scores(*found)


class _HeadScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target_ids: torch.Tensor,
        vocab_size: int,
        group: dist.ProcessGroup,
        chunk_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first_row = group.rank() * weight.size(0)
        num_real = min(max(vocab_size - first_row, 0), weight.size(0))
        rows = head_rows(weight, num_real)
        scores = torch.zeros(len(target_ids), dtype=torch.float32, device=hidden.device)
        likeliest = torch.empty_like(target_ids)
        for start in range(0, hidden.size(0), chunk_size):
            part = slice(start, start + chunk_size)
            log_p = log_probabilities(hidden[part], rows, num_real, group=group)  # [c, r]
            likeliest[part] = _likeliest(log_p, first_row, group=group)
            here, column = _columns(target_ids[part], first_row, num_real)
            if num_real > 0:
                scores[part] = log_p.gather(1, column).squeeze(1).where(here, 0.0).float()
        if group.size() > 1:
            dist.all_reduce(scores, group=group)
        is_likeliest = likeliest == target_ids
        ctx.save_for_backward(hidden, weight, target_ids)
        ctx.sizes = vocab_size, group, chunk_size
        ctx.mark_non_differentiable(is_likeliest)
        return scores, is_likeliest

    @staticmethod
    def backward(
        ctx: Any, factors: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, target_ids = ctx.saved_tensors
        vocab_size, group, chunk_size = ctx.sizes
        first_row = group.rank() * weight.size(0)
        num_real = min(max(vocab_size - first_row, 0), weight.size(0))
        rows = head_rows(weight, num_real)
        hidden_gradient = torch.zeros_like(hidden)
        weight_gradient: torch.Tensor | None = None
        main = main_gradient(weight) if ctx.needs_input_grad[1] else None
        if main is not None:
            weight_gradient = main
        elif ctx.needs_input_grad[1]:  # else the table is frozen
            weight_gradient = torch.zeros(
                weight.shape, dtype=sum_dtype(weight.dtype), device=weight.device
            )
        for start in range(0, hidden.size(0), chunk_size):
            part = slice(start, start + chunk_size)
            log_p = log_probabilities(hidden[part], rows, num_real, group=group)
            if num_real == 0:
                continue
            here, column = _columns(target_ids[part], first_row, num_real)
            # The gradient of log p(target) is 1 at the target less the probabilities.
            gradient = log_p.exp_().neg_()
            gradient.scatter_add_(1, column, here.to(gradient.dtype).unsqueeze(1))
            gradient = (gradient * factors[part].unsqueeze(1)).to(hidden.dtype)
            torch.mm(gradient, rows, out=hidden_gradient[part])
            if weight_gradient is not None:
                add_product(weight_gradient[: rows.size(0)], gradient.t(), hidden[part])
        if group.size() > 1:
            dist.all_reduce(hidden_gradient, group=group)
        if main is not None:
            arrived(weight)
            weight_gradient = None
        elif weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        return hidden_gradient, weight_gradient, *(None,) * 4


def _columns(
    target_ids: torch.Tensor, first_row: int, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whether this rank holds each target [c], and its row, or 0 [c, 1]."""
    local_ids = target_ids - first_row
    here = (local_ids >= 0) & (local_ids < num_rows)
    return here, local_ids.where(here, 0).unsqueeze(1)


def _likeliest(log_p: torch.Tensor, first_row: int, *, group: dist.ProcessGroup) -> torch.Tensor:
    """Return the likeliest id over the vocabulary of all ranks [c], the smallest of equal ones."""
    if log_p.size(1) == 0:
        best = log_p.new_full((log_p.size(0),), float("-inf"))
        ids = torch.zeros(log_p.size(0), dtype=torch.int64, device=log_p.device)
    else:
        best, ids = log_p.max(dim=1)
    if group.size() == 1:
        return ids
    peak = best.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    ids = (ids + first_row).where(best == peak, torch.iinfo(torch.int64).max)
    dist.all_reduce(ids, op=dist.ReduceOp.MIN, group=group)
    return ids
