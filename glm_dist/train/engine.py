"""DeepSpeed around one stage: gradients in, sharded optimizer step out.

ZeRO 0 and 1, any number of stages: megatron-core's schedule on the bare module, then gradients that
several ranks hold parts of (tied embedding, sequence parallelism) are summed, then ZeRO reduces
over replicas and steps. ZeRO 2 and 3 shard gradients while backward runs: DeepSpeed's own forward
and backward, one stage. Callers see ``forward_backward`` and ``step`` and never ask which.

Scaling: DeepSpeed averages gradients over replicas. Callers fold the number of replicas into the
loss scales; nothing else divides.
"""

import io
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
import torch.distributed as dist

from glm_dist.config.schema import OptimizerConfig
from glm_dist.errors import TrainingError
from glm_dist.model.batch import StageBatch
from glm_dist.model.chunks import GLMChunks
from glm_dist.model.stage import GLMStage
from glm_dist.optim.param_groups import param_groups
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.schedule import run_schedule
from glm_dist.parallel.sequence import (
    has_partial_gradient,
    sum_gradients,
    sum_gradients_on_arrival,
)

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read once, when deepspeed is imported
import deepspeed
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

# Training never calls this op, yet DeepSpeed (0.19) compiles it at every first start on CPU: that
# needs a compiler, and a start killed meanwhile leaves a lock on which later ones wait in silence.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class _ModelParallelUnit:
    """The groups under the names DeepSpeed asks for ("mpu")."""

    def __init__(self, groups: ParallelGroups) -> None:
        self._groups = groups

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """All ranks of a replica, so that norms and overflow checks see the whole model."""
        return self._groups.model

    def get_model_parallel_world_size(self) -> int:
        return self._groups.model.size()

    def get_model_parallel_rank(self) -> int:
        place, layout = self._groups.coordinates, self._groups.layout
        return place.pipeline * layout.tensor_parallel_size + place.tensor

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.tensor

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._groups.layout.tensor_parallel_size

    def get_tensor_model_parallel_rank(self) -> int:
        return self._groups.coordinates.tensor

    def get_pipeline_model_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.pipeline

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self._groups.layout.pipeline_parallel_size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.data

    def get_data_parallel_world_size(self) -> int:
        return self._groups.layout.data_parallel_size

    def get_data_parallel_rank(self) -> int:
        return self._groups.coordinates.data


class TrainingEngine:
    """One rank's model, optimizer shard and step."""

    def __init__(
        self,
        stage: GLMStage | GLMChunks,
        optimizer: OptimizerConfig,
        *,
        deepspeed_config: dict[str, Any],
        groups: ParallelGroups,
    ) -> None:
        """Hand the stage to DeepSpeed. Collective over all ranks.

        Args:
            stage: This rank's part of the model, initialised.
            optimizer: AdamW's numbers.
            deepspeed_config: As ``train.deepspeed_config`` generates it.
            groups: This rank's process groups.
        """
        self.groups = groups
        self.stage = stage
        self.shards = stage.shards()  # before ZeRO 3 empties the parameters
        self.zero_stage = int(deepspeed_config["zero_optimization"]["stage"])
        self._clip = optimizer.gradient_clipping
        config = dict(deepspeed_config)
        if self.zero_stage == 0:
            # Its clipping without ZeRO counts parameters of the first stage only; step() does it.
            config["gradient_clipping"] = 0.0
        if self.zero_stage >= 2:
            sum_gradients_on_arrival(stage.parameters(), groups.tensor)
        if self.zero_stage == 3 and stage.tied_weight is not None:
            # The head reads the table outside the embedding's own forward.
            deepspeed.zero.register_external_parameter(stage, stage.tied_weight)
        # BF16_Optimizer (0.19) prints memory statistics while it is built; failures still raise.
        with redirect_stdout(io.StringIO()):
            self._deepspeed: Any = deepspeed.initialize(
                model=stage,
                optimizer=torch.optim.AdamW(
                    param_groups(self.shards, weight_decay=optimizer.weight_decay),
                    lr=optimizer.learning_rate,
                    betas=(optimizer.beta1, optimizer.beta2),
                    eps=optimizer.epsilon,
                    fused=True,
                ),
                mpu=_ModelParallelUnit(groups),
                config=config,
                dist_init_required=False,
            )[0]
        if self.zero_stage > 0:
            self.stage.config.grad_scale_func = self._deepspeed.optimizer.scale_if_loss
        if self.has_loss_scale:
            self.optimizer.loss_scaler.raise_error_at_min_scale = False  # step() says it in words

    @property
    def optimizer(self) -> Any:
        """DeepSpeed's optimizer wrapper, or torch's AdamW without ZeRO."""
        return self._deepspeed.optimizer

    @property
    def has_loss_scale(self) -> bool:
        """Whether gradients may overflow without harm (fp16)."""
        return bool(self._deepspeed.fp16_enabled())

    @property
    def loss_scale(self) -> float | None:
        """Factor of the next step's loss in backward; None where there is none (fp32, bf16)."""
        return float(self.optimizer.loss_scaler.cur_scale) if self.has_loss_scale else None

    @property
    def skipped_steps(self) -> int:
        """Updates dropped because fp16 gradients overflowed."""
        return int(self._deepspeed.skipped_steps)

    def restore_skipped_steps(self, count: int) -> None:
        """Continue the count of a resumed run."""
        self._deepspeed.skipped_steps = count

    def forward_backward(
        self, batches: Sequence[StageBatch], *, loss_scales: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Accumulate the gradients of one step.

        Args:
            batches: Micro-batches of this replica.
            loss_scales: Factor [] of each micro-batch's summed loss.

        Returns:
            Summed loss [] of each micro-batch on the last stage; empty elsewhere.
        """
        self.stage.train()
        if self.zero_stage < 2:
            return self._scheduled_forward_backward(batches, loss_scales)
        losses = []
        for i, (batch, scale) in enumerate(zip(batches, loss_scales, strict=True)):
            self._deepspeed.set_gradient_accumulation_boundary(i == len(batches) - 1)
            loss_sum = self._deepspeed(batch)
            self._deepspeed.backward(loss_sum * scale, scale_wrt_gas=False)
            losses.append(loss_sum.detach())
        return losses

    def _scheduled_forward_backward(
        self, batches: Sequence[StageBatch], loss_scales: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        engine = self._deepspeed
        engine.set_gradient_accumulation_boundary(False)
        rows, length = batches[0].tokens.shape
        losses = run_schedule(
            self.stage.chunks,
            batches,
            loss_scales=loss_scales,
            row_length=length,
            micro_batch_size=rows,
            groups=self.groups,
        )
        self._sum_shared_gradients()
        engine.set_gradient_accumulation_boundary(True)
        engine.allreduce_gradients()
        return losses

    def _sum_shared_gradients(self) -> None:
        """Complete what one rank of a replica knows only a part of, before replicas average it."""
        tied = self.stage.tied_weight
        if tied is not None and self.groups.layout.pipeline_parallel_size > 1:
            dist.all_reduce(self._gradient(tied), group=self.groups.embedding)
        partial = [p.parameter for p in self.shards if has_partial_gradient(p.parameter)]
        sum_gradients([self._gradient(parameter) for parameter in partial], self.groups.tensor)

    def _gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """Where ZeRO 0 and 1 add up micro-batches; in fp32 whatever the model's format."""
        held: Any = parameter
        if isinstance(self.optimizer, BF16_Optimizer):
            gradient: torch.Tensor = held._hp_grad
        elif self.zero_stage == 0:
            gradient = held.grad
        else:
            gradient = self.optimizer.get_gradient_for_reduction(held)
        return gradient

    def step(self, learning_rate: float) -> torch.Tensor:
        """Clip and update.

        Args:
            learning_rate: For every parameter group.

        Returns:
            Global gradient norm before clipping [].

        Raises:
            TrainingError: On every rank: the update was dropped and a loss scale cannot mend it.
                Without ZeRO nothing is dropped, and the caller must look at the norm.
        """
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._clip_without_zero() if self.zero_stage == 0 else None
        may_shrink = self._may_shrink_loss_scale()
        self._deepspeed.step()
        if not self._deepspeed.was_step_applied():
            self._forget_overflow()
            self._check_mendable(may_shrink=may_shrink)
        if norm is None:
            norm = torch.as_tensor(self._deepspeed.get_global_grad_norm())
        return norm

    def _check_mendable(self, *, may_shrink: bool) -> None:
        """Go on after a dropped update only if a smaller loss scale may mend it.

        Raises:
            TrainingError: On every rank, as DeepSpeed agrees on what is dropped.
        """
        if not self.has_loss_scale:
            raise TrainingError(
                key="gradient norm",
                found="infinite or undefined",
                expected="a finite number",
                fix="continue from the last checkpoint in a new run with a lower "
                "optimizer.learning_rate or a longer warm-up",
            )
        if not may_shrink:
            raise TrainingError(
                key="precision.min_loss_scale",
                found=f"gradients that overflow at {self.optimizer.loss_scaler.cur_scale}",
                expected="finite gradients at the smallest loss scale",
                fix="continue from the last checkpoint in a new run with a lower "
                "optimizer.learning_rate, a longer warm-up or precision=bf16",
            )

    def _forget_overflow(self) -> None:
        """Drop a sum that overflowed; DeepSpeed 0.19 does so only if it is not offloaded.

        Kept, it would be added to, and every later step would overflow as well.
        """
        if self.zero_stage in (1, 2) and not isinstance(self.optimizer, BF16_Optimizer):
            self.optimizer.averaged_gradients.update(
                dict.fromkeys(self.optimizer.averaged_gradients)
            )

    def _may_shrink_loss_scale(self) -> bool:
        """Whether an overflow in this step still has an answer; not at the smallest scale."""
        if not self.has_loss_scale:
            return True
        scaler = self.optimizer.loss_scaler
        patient = scaler.delayed_shift > 1 and scaler.cur_hysteresis > 1
        return bool(patient or scaler.cur_scale > scaler.min_scale)

    @torch.no_grad()
    def _clip_without_zero(self) -> torch.Tensor:
        """Global norm over every parameter once, then scale the gradients down to the limit."""
        gradients = [p.parameter.grad for p in self.shards if p.parameter.grad is not None]
        counted = [
            shard.parameter.grad
            for shard in self.shards
            if shard.parameter.grad is not None
            and (shard.tensor_dim is not None or self.groups.coordinates.tensor == 0)
            and not getattr(shard.parameter, "ds_pipe_replicated", False)
        ]
        device = gradients[0].device
        square = torch.zeros((), dtype=torch.float64, device=device)
        for gradient in counted:
            square += torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        dist.all_reduce(square, group=self.groups.model)
        norm = square.sqrt()
        if self._clip > 0.0:
            factor = (self._clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        return norm
