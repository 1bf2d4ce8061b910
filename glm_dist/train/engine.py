"""One rank's model and optimizer: forward, backward and update of a step.

ZeRO 0 and 1, any number of stages: megatron-core's schedule runs the bare modules; then partial
gradients of several ranks (tied embedding, sequence parallelism) are summed; then ZeRO reduces over
replicas and steps. ZeRO 2 and 3, one stage: DeepSpeed's own forward and backward, which shards
gradients during backward. Callers use ``forward_backward`` and ``step`` for every ZeRO stage.

Scaling: the optimizer averages gradients over replicas. Callers fold the number of replicas into
the loss scales; nothing else divides.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist

from glm_dist.config.schema import OptimizerConfig
from glm_dist.model.batch import StageBatch
from glm_dist.model.stage import GLMShard
from glm_dist.observe.step_profiler import named_range
from glm_dist.optim.open import open_zero_optimizer
from glm_dist.optim.state import PendingStep, Rates
from glm_dist.optim.zero import Accept
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.sequence import (
    has_partial_gradient,
    sum_gradients,
    sum_gradients_on_arrival,
)
from glm_dist.train.own_time import OwnTime
from glm_dist.train.task import ScoringTask, Task, TaskLoss, run_scores, run_task


class TrainingEngine:
    """One rank's model, task, optimizer shard and step."""

    def __init__(
        self,
        model: GLMShard,
        task: Task,
        optimizer: OptimizerConfig,
        *,
        deepspeed_config: dict[str, Any],
        groups: ParallelGroups,
    ) -> None:
        """Shard the optimizer over replicas. Collective over all ranks.

        Args:
            model: This rank's part of the model, initialised.
            task: Turns hidden states into a loss.
            optimizer: AdamW's hyperparameters.
            deepspeed_config: Output of ``train.deepspeed_config``.
            groups: This rank's process groups.
        """
        self.groups = groups
        self.model = model
        self.task = task
        self.shards = model.shards()  # before ZeRO 3 empties the parameters
        self.own_time = OwnTime(next(model.parameters()).device)
        self._loss_module = _LossModule(model, task)
        self.zero = open_zero_optimizer(
            self._loss_module,
            self.shards,
            optimizer,
            deepspeed_config=deepspeed_config,
            groups=groups,
            tied_weight=model.tied_weight,
            blocks=model.blocks,
        )
        if self.zero.reduces_in_backward:
            sum_gradients_on_arrival(model.parameters(), groups.tensor)
        model.config.grad_scale_func = self.zero.scale_loss

    def forward_backward(
        self, batches: Sequence[StageBatch], *, loss_scales: Sequence[torch.Tensor]
    ) -> list[TaskLoss]:
        """Accumulate the gradients of one step.

        Args:
            batches: Micro-batches of this replica.
            loss_scales: Factor [] of each micro-batch's summed loss.

        Returns:
            Detached loss of each micro-batch on the last stage; empty elsewhere.
        """
        self.model.train()
        if self.zero.reduces_in_backward:
            losses = []
            for i, (batch, scale) in enumerate(zip(batches, loss_scales, strict=True)):
                with self.own_time(), named_range("forward"):
                    total, metrics = self.zero.forward(batch)
                with named_range("backward"):
                    self.zero.backward(total * scale, is_last=i == len(batches) - 1)
                losses.append(TaskLoss(total.detach(), metrics))
            return losses
        self.zero.begin_accumulation(len(batches))
        with self.own_time(), named_range("forward-backward"):
            losses = run_task(
                self.model, self.task, batches, groups=self.groups, loss_scales=loss_scales
            )
        with named_range("reduction"):
            self._sum_shared_gradients()
            self.zero.reduce_gradients()
        return losses

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode; afterwards it is in the mode that it was in."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[StageBatch]) -> list[TaskLoss]:
        """Compute losses without dropout and gradients.

        Args:
            batches: Micro-batches of this replica.

        Returns:
            Loss of each micro-batch on the last stage; empty elsewhere.
        """
        with self.evaluating():
            if self.zero.reduces_in_backward:
                return [TaskLoss(*self._loss_module(batch)) for batch in batches]
            return run_task(self.model, self.task, batches, groups=self.groups)

    @torch.no_grad()
    def predict(self, batches: Sequence[StageBatch]) -> list[torch.Tensor]:
        """Rate the answers of examples without dropout and gradients; needs a ``ScoringTask``.

        Args:
            batches: Micro-batches of this replica.

        Returns:
            Scores [e, c] of each micro-batch on the last stage; empty elsewhere.
        """
        with self.evaluating():
            if self.zero.reduces_in_backward:
                return [self._loss_module(batch, rates=True) for batch in batches]
            task = cast(ScoringTask, self.task)
            return run_scores(self.model, task, batches, groups=self.groups)

    def _sum_shared_gradients(self) -> None:
        """Sum partial gradients within a replica, before they are averaged over replicas."""
        tied, is_pipeline = self.model.tied_weight, self.groups.layout.pipeline_parallel_size > 1
        if tied is not None and tied.requires_grad and is_pipeline:
            dist.all_reduce(self.zero.gradient(tied), group=self.groups.embedding)
        trained = [shard.parameter for shard in self.shards if shard.is_trained]
        partial = [parameter for parameter in trained if has_partial_gradient(parameter)]
        sum_gradients([self.zero.gradient(parameter) for parameter in partial], self.groups.tensor)

    def step(self, rates: Rates, accept: Accept | None = None) -> PendingStep:
        """Clip and update; see ``ZeroOptimizer.step``."""
        with named_range("update"):
            return self.zero.step(rates, accept)

    def close(self) -> None:
        """Release the optimizer's hooks and memory; the engine cannot be used afterwards."""
        self.model.config.grad_scale_func = None
        self.zero.close()


class _LossModule(torch.nn.Module):
    """Model and loss as one module, for stages whose backward DeepSpeed runs.

    ZeRO 3 gathers parameters only during a module's forward, and the loss reads the word table.
    """

    def __init__(self, model: GLMShard, task: Task) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(
        self, batch: StageBatch, *, rates: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor:
        (stage,) = self.model.chunks  # stages and ZeRO 2 and 3 exclude each other
        if rates:
            return cast(ScoringTask, self._task).scores(stage, stage(batch), batch)
        return self._task.loss(stage, stage(batch), batch)
