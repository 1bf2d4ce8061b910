"""Origin of a value that is not finite: ranks, tensors, micro-batches and rows of a step."""

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glm_dist.parallel.errors import Ranks
from glm_dist.train.step import StepResult

_MAX_LISTED = 3
"""Names or micro-batches in a line of the message."""


@dataclass(frozen=True)
class Finding:
    """Values of one rank that are not finite."""

    rank: int
    host: str
    tensors: Sequence[str]
    """Parameters whose gradients are not finite."""
    micro_batches: Sequence[tuple[float, str]]
    """Loss and rows of each micro-batch whose loss is not finite."""
    losses: int
    """Micro-batches whose loss this rank knows; 0 but on the last stage."""


def find(result: StepResult, rows: Sequence[Sequence[int]]) -> list[Finding]:
    """Look at a step on every rank. Collective over all ranks; synchronises with the device.

    Args:
        result: Results of the step on this rank.
        rows: Row indices of each of its micro-batches.

    Returns:
        What each rank found, in rank order, equal on all ranks.
    """
    losses = torch.stack(list(result.micro_losses)).tolist() if result.micro_losses else []
    ranks = Ranks(None)
    return ranks.gather(
        Finding(
            rank=ranks.rank,
            host=socket.gethostname(),
            tensors=result.outcome.non_finite,
            micro_batches=[
                (loss, _range(indices))
                for loss, indices in zip(losses, rows, strict=False)
                if not math.isfinite(loss)
            ],
            losses=len(losses),
        )
    )


def describe(findings: Sequence[Finding]) -> str:
    """Describe what all ranks found, in lines."""
    lines = []
    for each in findings:
        by_rank = f"  rank {each.rank} on {each.host}: "
        if each.micro_batches:
            shown = ", ".join(
                f"{loss} for rows {rows}" for loss, rows in each.micro_batches[:_MAX_LISTED]
            )
            more = _more(len(each.micro_batches))
            count = f"{len(each.micro_batches)} of {each.losses} micro-batches"
            lines.append(f"{by_rank}the loss of {count} is {shown}{more}")
        if each.tensors:
            noun = "gradient is" if len(each.tensors) == 1 else "gradients are"
            names = ", ".join(each.tensors[:_MAX_LISTED]) + _more(len(each.tensors))
            lines.append(f"{by_rank}{len(each.tensors)} {noun} not finite: {names}")
    if not any(each.micro_batches for each in findings):
        lines.append(
            "  The loss of every micro-batch is finite: the value arose in backward, or on a faulty"
            " device."
        )
    return "\n".join(lines)


def rows_in(findings: Sequence[Finding]) -> str:
    """Name the rows of all micro-batches whose loss is not finite, as first-last."""
    return ", ".join(dict.fromkeys(rows for each in findings for _, rows in each.micro_batches))


def _range(indices: Sequence[int]) -> str:
    return f"{indices[0]}-{indices[-1]}" if indices else ""


def _more(count: int) -> str:
    return f" and {count - _MAX_LISTED} more" if count > _MAX_LISTED else ""
