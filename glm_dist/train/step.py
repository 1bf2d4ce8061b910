"""One optimizer step: micro-batches in, updated weights and a few numbers out.

The loss is a sum over predicted tokens divided by their number in the whole step, over all
replicas and micro-batches (ADR 0004), so neither micro-batch size nor layout changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from glm_dist.config.schema import LossNormalization
from glm_dist.data.rows import MicroBatch
from glm_dist.model.batch import StageBatch
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.train.engine import TrainingEngine


@dataclass(frozen=True)
class StepResult:
    """What a step leaves on the device; reading it synchronises, so only logging steps do."""

    loss_share: torch.Tensor
    """This rank's part of the loss []; summed over all ranks of the job it is the step's loss."""
    grad_norm: torch.Tensor
    """Global gradient norm before clipping [], equal on all ranks."""
    num_targets: torch.Tensor
    """Predicted tokens of the whole step []."""


def loss_scales(
    batches: Sequence[StageBatch],
    *,
    normalize_by: LossNormalization,
    groups: ParallelGroups,
    device: torch.device,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Factor of each micro-batch's summed loss, and the step's number of targets.

    The number of replicas is a factor because DeepSpeed averages gradients over them.

    Args:
        batches: Micro-batches of this replica.
        normalize_by: Divide by the step's targets, or average means as the official code does.
        groups: This rank's process groups.
        device: The rank's device.

    Returns:
        Scales [] per micro-batch, and the targets [] of the whole step.
    """
    counts = [b.target_ids.numel() for b in batches]
    total = _scalar(sum(counts), device)
    dist.all_reduce(total, group=groups.data)
    replicas = groups.layout.data_parallel_size
    if normalize_by is LossNormalization.global_tokens:
        scale = replicas / total.clamp(min=1.0)
        return [scale] * len(batches), total
    return [_scalar(1.0 / (max(n, 1) * len(batches)), device) for n in counts], total


def _scalar(value: float, device: torch.device) -> torch.Tensor:
    """A number [] in fp64; made on the device, as a copy to it would wait for the last step."""
    return torch.full((), value, dtype=torch.float64, device=device)


def train_step(
    engine: TrainingEngine,
    micro_batches: Sequence[MicroBatch],
    *,
    learning_rate: float,
    normalize_by: LossNormalization,
    device: torch.device,
) -> StepResult:
    """Forward, backward, reduce, clip, update.

    Args:
        engine: Model and optimizer of this rank.
        micro_batches: Rows of this replica for this step.
        learning_rate: Of this step.
        normalize_by: See ``loss_scales``.
        device: The rank's device.
    """
    groups = engine.groups
    batches = [StageBatch.from_micro_batch(m, device) for m in micro_batches]
    scales, num_targets = loss_scales(
        batches, normalize_by=normalize_by, groups=groups, device=device
    )
    losses = engine.forward_backward(batches, loss_scales=scales)
    share = torch.zeros((), dtype=torch.float64, device=device)
    if groups.reports_loss:
        for loss, scale in zip(losses, scales, strict=True):
            share += loss * scale
        share /= groups.layout.data_parallel_size
    return StepResult(
        loss_share=share, grad_norm=engine.step(learning_rate), num_targets=num_targets
    )
