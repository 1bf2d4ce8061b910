"""Training task: from rows to a batch, from hidden states to a loss.

The model's last stage returns hidden states; a task turns them into a sum of losses, the weight
that the step divides by, and metrics. Schedule, engine and step know nothing else about the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from glm_dist.data.micro_batch import MicroBatch
from glm_dist.model.batch import StageBatch
from glm_dist.model.head import head_loss
from glm_dist.model.stage import GLMShard, GLMStage
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.schedule import Result, run_schedule


class TaskLoss(NamedTuple):
    """Loss of one micro-batch, on the last stage."""

    total: torch.Tensor
    """Sum of losses [], to be divided by the step's weight."""
    metrics: torch.Tensor
    """This rank's part of the sum and count of each named metric [m, 2] in fp64, detached; the
    parts of all ranks add up."""


class Task(Protocol):
    """Interface of a training task."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics [m], each a mean over its count; the same on every rank."""

    def batch(self, micro_batch: MicroBatch, device: torch.device) -> StageBatch:
        """Move a micro-batch to the device in the form that the model and the loss need.

        Args:
            micro_batch: Host tensors as the loader yields them.
            device: The rank's device.
        """

    def weight(self, batch: StageBatch) -> int:
        """Return the batch's part of the step's divisor; known on the host."""

    def loss(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> TaskLoss:
        """Compute the loss of a micro-batch.

        Args:
            stage: The last stage, which holds the head.
            hidden: Its final hidden states [s, b, h], or this rank's part of the rows under
                sequence parallelism.
            batch: Output of ``batch``.
        """


class ScoringTask(Task, Protocol):
    """Interface of a task that scores the candidates of an example, or its classes."""

    @property
    def rows_per_example(self) -> int:
        """Consecutive rows of an example."""

    def scores(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> torch.Tensor:
        """Compute the scores of examples, whether they have labels or not.

        Args:
            stage: The last stage.
            hidden: Its final hidden states, as in ``loss``.
            batch: Output of ``batch``; examples that only fill it up have no targets.

        Returns:
            [e, c] in fp32, in the order of the batch, equal on all tensor ranks; the highest is the
            prediction. All batches of a task have the same c.
        """


@dataclass(frozen=True)
class Pretraining:
    """Cross entropy of the targets, in total and by objective."""

    objectives: Sequence[str] = ()
    """Names of the objectives whose losses are reported; others count only in the total."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """See ``Task``."""
        return tuple(f"loss_{name}" for name in self.objectives)

    def batch(self, micro_batch: MicroBatch, device: torch.device) -> StageBatch:
        """See ``Task``."""
        return StageBatch.from_micro_batch(micro_batch, device, groups=self.objectives)

    def weight(self, batch: StageBatch) -> int:
        """Return the number of predicted tokens."""
        return batch.target_ids.numel()

    def loss(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> TaskLoss:
        """See ``Task``."""
        total, by_objective = head_loss(
            stage.at_targets(hidden, batch.target_index),
            stage.head_weight,
            batch.target_ids,
            vocab_size=stage.vocab_size,
            group=stage.groups.tensor,
            is_fused=stage.pointwise.is_fused,
            target_groups=batch.target_groups,
        )
        counts = torch.zeros_like(by_objective)
        if batch.target_groups is not None and stage.groups.reports_loss:
            # Every tensor rank has a part of the sums, but only one may count the targets.
            counts = batch.target_groups.sum(dim=1, dtype=counts.dtype)
        return TaskLoss(total, torch.stack([by_objective, counts], dim=1))


def run_task(
    model: GLMShard,
    task: Task,
    batches: Sequence[StageBatch],
    *,
    groups: ParallelGroups,
    loss_scales: Sequence[torch.Tensor] | None = None,
) -> list[TaskLoss]:
    """Run micro-batches through the pipeline. Collective over a replica.

    Args:
        model: This rank's part of the model.
        task: Turns hidden states into losses.
        batches: Micro-batches of this replica, of one shape.
        groups: This rank's process groups.
        loss_scales: Factor [] of each summed loss before backward; None: forward only.

    Returns:
        Detached loss of each micro-batch on the last stage; empty elsewhere.
    """

    def finish(stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> Result:
        loss = task.loss(stage, hidden, batch)
        return Result(loss.total, TaskLoss(loss.total.detach(), loss.metrics))

    return _run(model, batches, finish, groups=groups, loss_scales=loss_scales)


def run_scores(
    model: GLMShard, task: ScoringTask, batches: Sequence[StageBatch], *, groups: ParallelGroups
) -> list[torch.Tensor]:
    """Run micro-batches forward and rate their answers. Collective over a replica.

    Args:
        model: This rank's part of the model.
        task: Turns hidden states into scores.
        batches: Micro-batches of this replica, of one shape.
        groups: This rank's process groups.

    Returns:
        Scores [e, c] of each micro-batch on the last stage; empty elsewhere.
    """

    def finish(stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> Result:
        return Result(hidden.new_zeros(()), task.scores(stage, hidden, batch))

    return _run(model, batches, finish, groups=groups, loss_scales=None)


def _run(
    model: GLMShard,
    batches: Sequence[StageBatch],
    finish: Callable[[GLMStage, torch.Tensor, StageBatch], Result],
    *,
    groups: ParallelGroups,
    loss_scales: Sequence[torch.Tensor] | None,
) -> list[Any]:
    """Run the schedule on batches of one shape; None: forward only."""
    rows, length = batches[0].tokens.shape
    one = torch.ones((), device=batches[0].tokens.device)
    return run_schedule(
        model.chunks,
        batches,
        finish=finish,
        loss_scales=loss_scales or [one] * len(batches),
        row_length=length,
        micro_batch_size=rows,
        groups=groups,
        forward_only=loss_scales is None,
    )
