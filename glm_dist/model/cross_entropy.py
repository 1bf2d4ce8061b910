"""Cross entropy of a chunk of logits, vocabulary-parallel, with its gradient.

Two ways to the same numbers. One by one: log-softmax, a gather and a scatter over the logits.
Fused: one compiled function that reads the 16-bit logits twice and writes their gradient once; the
target is found by comparing columns, and nothing in fp32 is as large as the logits.

Columns at or after ``num_real`` are padding: their logits count as -inf, their gradient is 0.

Letters: c targets of the chunk; h hidden; v/t columns of this rank.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import distributed as dist

from glm_dist.model.fused_bodies import compiled


@dataclass(frozen=True)
class Vocabulary:
    """The columns of this rank, and what the loss aims at."""

    num_real: int
    """Columns of this rank that are tokens."""
    size: int
    """Tokens of all ranks."""
    group: dist.ProcessGroup
    """Ranks that share the vocabulary."""
    label_smoothing: float = 0.0
    """Share of all tokens alike."""


class Terms(NamedTuple):
    """Contributions of a chunk; sums over targets are left to the caller."""

    found: torch.Tensor
    """Log-probability of each target that this rank holds, 0 for the others [c]."""
    total: torch.Tensor | None
    """Sum of the log-probabilities of this rank's tokens [c]; None without smoothing."""
    gradient: torch.Tensor | None
    """Gradient of the logits in their dtype [c, v/t]; None if not asked for."""


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: fp32 for 16-bit numbers."""
    return torch.promote_types(dtype, torch.float32)


def head_rows(weight: torch.Tensor, num_real: int, *, is_fused: bool = False) -> torch.Tensor:
    """Return the rows of the word table to multiply with.

    On GPUs all of them: rows of the product are then aligned (v/t is a multiple of 16 for up to 8
    ranks), which more than pays for the padding. On CPUs only real ones.

    Args:
        weight: This rank's rows [v/t, h].
        num_real: Rows that are tokens.
        is_fused: Do as on GPUs.
    """
    return weight if (weight.is_cuda or is_fused) and num_real > 0 else weight[:num_real]


def log_probabilities(
    hidden: torch.Tensor, rows: torch.Tensor, num_real: int, *, group: dist.ProcessGroup
) -> torch.Tensor:
    """Return log-probabilities of this rank's tokens over the vocabulary of all ranks.

    Args:
        hidden: [c, h].
        rows: Result of ``head_rows``.
        num_real: Rows that are tokens.
        group: Ranks that share the vocabulary.

    Returns:
        [c, rows], -inf in padded columns.
    """
    return _log_softmax(hidden @ rows.t(), num_real, group)


def _log_softmax(logits: torch.Tensor, num_real: int, group: dist.ProcessGroup) -> torch.Tensor:
    logits[:, num_real:] = -torch.inf
    if group.size() == 1:
        return torch.log_softmax(logits, dim=1, dtype=sum_dtype(logits.dtype))
    logits = logits.to(sum_dtype(logits.dtype))
    local = logits.logsumexp(dim=1)  # [c], -inf if a rank holds only padding
    return logits.sub_(_over_ranks(local, group).unsqueeze(1))


def _over_ranks(local: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Turn the logsumexp of this rank's logits [c] into that of all ranks' logits."""
    if group.size() == 1:
        return local
    peak = local.clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    total = (local - peak).exp_()
    dist.all_reduce(total, group=group)
    return total.log_().add_(peak)


def terms_one_by_one(
    logits: torch.Tensor, local_ids: torch.Tensor, vocabulary: Vocabulary, *, needs_gradient: bool
) -> Terms:
    """Compute the terms of a chunk by torch's operations.

    Args:
        logits: [c, v/t], overwritten.
        local_ids: Column of each target [c]; outside of the real columns if another rank has it.
        vocabulary: Columns and aim.
        needs_gradient: Compute the gradient too.
    """
    num_real, smoothing = vocabulary.num_real, vocabulary.label_smoothing
    dtype = logits.dtype
    log_p = _log_softmax(logits, num_real, vocabulary.group)
    del logits  # free before another tensor of this size exists
    if num_real == 0:
        nothing = log_p.new_zeros(log_p.size(0))
        return Terms(nothing, nothing, log_p.to(dtype) if needs_gradient else None)
    here = (local_ids >= 0) & (local_ids < num_real)
    column = local_ids.where(here, 0).unsqueeze(1)
    found = log_p.gather(1, column).squeeze(1).where(here, 0.0)  # [c]
    total = log_p[:, :num_real].sum(dim=1) if smoothing > 0.0 else None
    if not needs_gradient:
        return Terms(found, total, None)
    # Probabilities less the distribution that the loss aims at.
    gradient = log_p.exp_()
    aim = here.to(log_p.dtype).mul_(1 - smoothing).unsqueeze(1)
    gradient.scatter_add_(1, column, -aim)
    if smoothing > 0.0:
        gradient[:, :num_real] -= smoothing / vocabulary.size
    return Terms(found, total, gradient.to(dtype))


def terms_fused(
    logits: torch.Tensor, local_ids: torch.Tensor, vocabulary: Vocabulary, *, needs_gradient: bool
) -> Terms:
    """Compute the same by compiled functions; with several ranks, one on each side of the sum.

    Args:
        logits: [c, v/t].
        local_ids: As for ``terms_one_by_one``.
        vocabulary: Columns and aim.
        needs_gradient: Compute the gradient too.
    """
    # The number of targets differs from one micro-batch to the next.
    for tensor in (logits, local_ids):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    num_real, smoothing = vocabulary.num_real, vocabulary.label_smoothing
    aim = (num_real, smoothing, smoothing / vocabulary.size)
    if vocabulary.group.size() == 1 and needs_gradient:
        found, total, gradient = compiled(_everything)(logits, local_ids, *aim)
        return Terms(found, total, gradient)
    local, at_target, logit_sum = compiled(_statistics)(logits, local_ids, num_real, smoothing)
    whole = _over_ranks(local, vocabulary.group)
    here = (local_ids >= 0) & (local_ids < num_real)
    found = (at_target - whole).where(here, 0.0)
    total = None if logit_sum is None else logit_sum - num_real * whole
    if not needs_gradient:
        return Terms(found, total, None)
    return Terms(found, total, compiled(_gradient)(logits, whole, local_ids, *aim))


# The functions below are compiled.


def _wide(logits: torch.Tensor, num_real: int) -> torch.Tensor:
    """Return logits as sums need them, -inf in padded columns."""
    wide = logits.to(sum_dtype(logits.dtype))
    if num_real == logits.size(1):
        return wide
    columns = torch.arange(logits.size(1), device=logits.device)
    return wide.masked_fill(columns >= num_real, -torch.inf)


def _is_target(logits: torch.Tensor, local_ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(logits.size(1), device=logits.device) == local_ids.unsqueeze(1)


def _statistics(
    logits: torch.Tensor, local_ids: torch.Tensor, num_real: int, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return logsumexp, the target's logit or 0, and with smoothing the sum of logits, each [c]."""
    wide = _wide(logits, num_real)
    at_target = wide.where(_is_target(logits, local_ids), 0.0).sum(dim=1)
    logit_sum = None
    if smoothing > 0.0:
        logit_sum = logits[:, :num_real].to(wide.dtype).sum(dim=1)
    return wide.logsumexp(dim=1), at_target, logit_sum


def _gradient(
    logits: torch.Tensor,
    whole: torch.Tensor,
    local_ids: torch.Tensor,
    num_real: int,
    smoothing: float,
    share: float,
) -> torch.Tensor:
    """Return probabilities less the distribution that the loss aims at, in the logits' dtype."""
    gradient = (_wide(logits, num_real) - whole.unsqueeze(1)).exp()
    gradient = gradient - torch.where(_is_target(logits, local_ids), 1.0 - smoothing, 0.0)
    if smoothing > 0.0:
        columns = torch.arange(logits.size(1), device=logits.device)
        gradient = gradient - torch.where(columns < num_real, share, 0.0)
    return gradient.to(logits.dtype)


def _everything(
    logits: torch.Tensor, local_ids: torch.Tensor, num_real: int, smoothing: float, share: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    whole, at_target, logit_sum = _statistics(logits, local_ids, num_real, smoothing)
    total = None if logit_sum is None else logit_sum - num_real * whole
    gradient = _gradient(logits, whole, local_ids, num_real, smoothing, share)
    return at_target - whole, total, gradient
