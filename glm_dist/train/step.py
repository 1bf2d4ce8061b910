"""One optimizer step: forward, backward and update over micro-batches.

The loss is a sum over predicted tokens divided by their number in the whole step, over all
replicas and micro-batches (ADR 0004), so neither micro-batch size nor layout changes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.distributed as dist

from glm_dist.config.schema import LossNormalization
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.optim.state import PendingStep, Rates, StepOutcome
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.train.engine import TrainingEngine

Judge: TypeAlias = Callable[[torch.Tensor, torch.Tensor], bool]
"""Says of this rank's part of the loss [] and the finite gradient norm [] whether to apply the
update; collective, and equal on all ranks."""


@dataclass(frozen=True)
class StepResult:
    """Results of a step on the device; reading them synchronises, so only logging steps do."""

    loss_share: torch.Tensor
    """This rank's part of the loss []; the sum over all ranks of the job is the step's loss."""
    metrics: torch.Tensor
    """This rank's part of the sum and count of each of the task's metrics [m, 2]."""
    pending: PendingStep
    """Gradient norm, equal on all ranks, and whether the update was applied."""
    weight: torch.Tensor
    """Divisor of the loss []; in pretraining, the predicted tokens of the whole step."""
    micro_losses: Sequence[torch.Tensor] = ()
    """Summed loss [] of each micro-batch of this replica, on the last stage."""

    @property
    def outcome(self) -> StepOutcome:
        """Outcome of the update; waits for the device if it is not known yet."""
        return self.pending.settle()


def loss_scales(
    weights: Sequence[int],
    *,
    normalize_by: LossNormalization,
    groups: ParallelGroups,
    device: torch.device,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Compute the factor of each micro-batch's summed loss, and the step's weight.

    The number of replicas is a factor, because the optimizer averages gradients over them.

    Args:
        weights: Weight of each micro-batch of this replica.
        normalize_by: Divide by the step's weight, or average means as the official code does.
        groups: This rank's process groups.
        device: The rank's device.

    Returns:
        Scales [] per micro-batch, and the weight [] of the whole step.
    """
    replicas = groups.layout.data_parallel_size
    total = _scalar(sum(weights), device)
    # Over all ranks: the data group may still be gathering weights, and collectives of a group wait
    # for one another. Sums of integers are exact, and so is the division.
    dist.all_reduce(total, group=groups.world)
    total /= groups.layout.world_size // replicas
    if normalize_by is LossNormalization.global_tokens:
        scale = replicas / total.clamp(min=1.0)
        return [scale] * len(weights), total
    return [_scalar(1.0 / (max(n, 1) * len(weights)), device) for n in weights], total


def _scalar(value: float, device: torch.device) -> torch.Tensor:
    """Create a number [] in fp64 on the device; a copy from the host would synchronise."""
    return torch.full((), value, dtype=torch.float64, device=device)


def train_step(
    engine: TrainingEngine,
    micro_batches: Sequence[MicroBatch],
    *,
    rates: Rates,
    normalize_by: LossNormalization,
    device: torch.device,
    accept: Judge | None = None,
) -> StepResult:
    """Queue forward, backward, reduction, clipping, check and update.

    Nothing here waits for the device, apart from ``accept`` and DeepSpeed's own update.

    Args:
        engine: Model and optimizer of this rank.
        micro_batches: Rows of this replica for this step.
        rates: Learning rates of this step; see ``Rates``.
        normalize_by: See ``loss_scales``.
        device: The rank's device.
        accept: Called before the update; if it returns False, the update is dropped.
    """
    groups, task = engine.groups, engine.task
    batches = [task.batch(micro_batch, device).planned() for micro_batch in micro_batches]
    scales, weight = loss_scales(
        [task.weight(batch) for batch in batches],
        normalize_by=normalize_by,
        groups=groups,
        device=device,
    )
    losses = engine.forward_backward(batches, loss_scales=scales)
    share = torch.zeros((), dtype=torch.float64, device=device)
    metrics = torch.zeros(len(task.metric_names), 2, dtype=torch.float64, device=device)
    for loss, scale in zip(losses, scales, strict=False):  # only the last stage has losses
        metrics += loss.metrics
        if groups.reports_loss:
            share += loss.total * scale
    share /= groups.layout.data_parallel_size
    judge = None if accept is None else partial(accept, share)
    pending = engine.step(rates, judge)
    return StepResult(share, metrics, pending, weight, [loss.total for loss in losses])
