"""ZeRO behind one interface: what training and checkpoints need of a sharded optimizer.

Each stage of DeepSpeed's ZeRO stores gradients, master weights and moments differently. One adapter
per layout has the same interface, so no other code checks the stage. This is the only file that
uses DeepSpeed's internals (0.19.8).

==============  =======================================================================
``PlainAdamW``  stage 0: torch's AdamW, state per parameter
``FlatShards``  stages 1 and 2: one flat partition per group, mapped to parameters
``FlatBF16``    stage 1 in bf16: the same, with separate fp32 gradients
``ParameterShards``  stage 3: an equal flat slice of every parameter
==============  =======================================================================
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.state import (
    LOSS_SCALER_FIELDS,
    MOMENTS,
    OptimizerCounters,
    StateSlice,
    StepOutcome,
)
from glm_dist.parallel.groups import ParallelGroups


class ZeroOptimizer(ABC):
    """AdamW over the replicas of one rank's parameters."""

    reduces_in_backward: ClassVar[bool] = False
    """True if gradients are reduced during backward, through ``forward_backward``; otherwise
    the caller accumulates them and calls ``reduce_gradients`` at the end."""

    def __init__(
        self,
        engine: Any,
        shards: Sequence[ParameterShard],
        *,
        groups: ParallelGroups,
        clip: float,
    ) -> None:
        """Adapt an engine.

        Args:
            engine: DeepSpeed's engine.
            shards: Parameters of this rank.
            groups: This rank's process groups.
            clip: Largest global gradient norm; 0 turns clipping off.
        """
        self.shards = shards
        self._groups = groups
        self._clip = clip
        self._engine: Any = engine
        self._inner: Any = engine.optimizer
        if self.has_loss_scale:
            # step() reports it instead.
            self._inner.loss_scaler.raise_error_at_min_scale = False

    # --- training ---

    @property
    def has_loss_scale(self) -> bool:
        """True if gradients may overflow without harm (fp16)."""
        return bool(self._engine.fp16_enabled())

    @property
    def loss_scale(self) -> float | None:
        """Factor of the next step's loss in backward; None if there is none (fp32, bf16)."""
        return float(self._inner.loss_scaler.cur_scale) if self.has_loss_scale else None

    @property
    def skipped_steps(self) -> int:
        """Updates dropped because fp16 gradients overflowed."""
        return int(self._engine.skipped_steps)

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Multiply a loss [] by the loss scale, if there is one."""
        scaled: torch.Tensor = self._inner.scale_if_loss(loss)
        return scaled

    @abstractmethod
    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return the tensor in which micro-batches accumulate, in fp32 for any model dtype."""

    def begin_accumulation(self) -> None:
        """Mark the next backward passes as not the last of a step."""
        self._engine.set_gradient_accumulation_boundary(False)

    def reduce_gradients(self) -> None:
        """Average the accumulated gradients over replicas. Collective over replicas."""
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.allreduce_gradients()

    def forward(self, batch: object) -> Any:
        """Run the wrapped module; only where ``reduces_in_backward``."""
        return self._engine(batch)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Run backward of one micro-batch; only where ``reduces_in_backward``.

        Args:
            loss: [], already divided by the step's weight.
            is_last: Also reduce the gradients accumulated in the step's earlier micro-batches.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> StepOutcome:
        """Clip and update, unless a gradient is not finite; then no weight changes on any rank.

        Args:
            learning_rate: Rate of every parameter group.
        """
        for group in self._inner.param_groups:
            group["lr"] = learning_rate
        is_recoverable = self._may_shrink_loss_scale()
        norm, is_applied = self._update()
        if not is_applied:
            self._discard_gradients()
        return StepOutcome(norm, is_skipped=not is_applied, is_recoverable=is_recoverable)

    def _update(self) -> tuple[torch.Tensor, bool]:
        """Clip and update; return the norm [] and whether DeepSpeed did not drop the update."""
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm())
        return norm, bool(self._engine.was_step_applied())

    @abstractmethod
    def _discard_gradients(self) -> None:
        """Discard sums that overflowed; the next step would add to them."""

    def _may_shrink_loss_scale(self) -> bool:
        """Return True if the loss scale can still shrink after an overflow in this step."""
        if not self.has_loss_scale:
            return False
        scaler = self._inner.loss_scaler
        is_patient = scaler.delayed_shift > 1 and scaler.cur_hysteresis > 1
        return bool(is_patient or scaler.cur_scale > scaler.min_scale)

    # --- state ---

    @abstractmethod
    def state_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """Yield the parts of a parameter that this rank updates; none if other replicas do.

        Needs moments: call ``ensure_moments`` or ``prepare_for_load`` before.
        """

    @abstractmethod
    def _masters(self) -> Sequence[torch.Tensor]:
        """Return the tensors that AdamW itself updates."""

    @property
    def _adamw(self) -> torch.optim.AdamW:
        adamw: torch.optim.AdamW = self._inner.optimizer
        return adamw

    def ensure_moments(self) -> None:
        """Create the moments of an optimizer that has made no update yet.

        AdamW creates them in its first update (also in DeepSpeed 0.19.8); fp16 overflows delay it.
        """
        if not self._adamw.state:
            self.prepare_for_load(updates=0)

    def prepare_for_load(self, *, updates: int) -> None:
        """Create the moments that a checkpoint is about to fill, and set AdamW's update counter.

        Args:
            updates: Optimizer updates made before the checkpoint.
        """
        for master in self._masters():
            self._adamw.state[master] = {
                "step": torch.tensor(float(updates), device=master.device),
                **{kind: torch.zeros_like(master) for kind in MOMENTS},
            }

    @abstractmethod
    def publish_weights(self) -> None:
        """Copy master weights into the model, on every replica. Collective over replicas."""

    def counters(self) -> OptimizerCounters:
        """Return the counters that a resumed run restores."""
        updates = [int(self._adamw.state[m]["step"]) for m in self._masters() if self._adamw.state]
        scaler = self._dynamic_scaler()
        return OptimizerCounters(
            updates=updates[0] if updates else 0,
            skipped_steps=self.skipped_steps,
            loss_scaler=None
            if scaler is None
            else {name: getattr(scaler, name) for name in LOSS_SCALER_FIELDS},
        )

    def restore_counters(self, counters: OptimizerCounters) -> None:
        """Continue the counts of an earlier run; ``prepare_for_load`` has set the updates."""
        self._engine.skipped_steps = counters.skipped_steps
        scaler = self._dynamic_scaler()
        if scaler is not None and counters.loss_scaler is not None:
            for name, value in counters.loss_scaler.items():
                setattr(scaler, name, value)

    def _dynamic_scaler(self) -> Any:
        return self._inner.loss_scaler if self.has_loss_scale else None

    def close(self) -> None:
        """Remove DeepSpeed's hooks and release the memory of gradients, weights and moments.

        Hooks on parameters hold the engine and the engine holds the parameters; without this
        neither is ever freed.
        """
        self._engine.destroy()
        self._adamw.state.clear()
        for group in self._inner.param_groups:
            group["params"] = []
        self._engine = self._inner = None


class PlainAdamW(ZeroOptimizer):
    """Stage 0: torch's AdamW on the parameters themselves, in fp32 only."""

    @property
    def _adamw(self) -> torch.optim.AdamW:
        adamw: torch.optim.AdamW = self._inner
        return adamw

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss: fp32 has no scale."""
        return loss

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """See ``ZeroOptimizer``."""
        assert parameter.grad is not None
        return parameter.grad

    def _update(self) -> tuple[torch.Tensor, bool]:
        norm = self._norm()
        if not torch.isfinite(norm):
            return norm, False
        if self._clip > 0.0:
            factor = (self._clip / (norm + 1e-6)).clamp(max=1.0)
            gradients = [s.parameter.grad for s in self.shards if s.parameter.grad is not None]
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        self._engine.step()
        return norm, True

    def _discard_gradients(self) -> None:
        self._inner.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _norm(self) -> torch.Tensor:
        """Return the global norm [] of all stages; DeepSpeed counts only the first stage."""
        square = torch.zeros((), dtype=torch.float64, device=self.shards[0].parameter.device)
        for shard in self.shards:
            gradient = shard.parameter.grad
            is_counted = shard.tensor_dim is not None or self._groups.coordinates.tensor == 0
            if gradient is None or not is_counted or shard.is_tied_copy:
                continue
            square += torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        dist.all_reduce(square, group=self._groups.model)
        return square.sqrt()

    def state_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """See ``ZeroOptimizer``."""
        yield StateSlice("model", shard.parameter.data.view(-1), 0)
        for kind in MOMENTS:
            yield StateSlice(kind, self._inner.state[shard.parameter][kind].view(-1), 0)

    def _masters(self) -> Sequence[torch.Tensor]:
        return [parameter for group in self._inner.param_groups for parameter in group["params"]]

    def publish_weights(self) -> None:
        """Do nothing: the model's parameters are the master weights."""


class FlatShards(ZeroOptimizer):
    """Stages 1 and 2: flat partitions of each parameter group."""

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """See ``ZeroOptimizer``; stage 1 only, as stage 2 has reduced its gradients already."""
        gradient: torch.Tensor = self._inner.get_gradient_for_reduction(parameter)
        return gradient

    def _discard_gradients(self) -> None:
        # DeepSpeed 0.19 does so only if the optimizer is not offloaded.
        self._inner.averaged_gradients.update(dict.fromkeys(self._inner.averaged_gradients))

    def state_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """See ``ZeroOptimizer``."""
        parameter: Any = shard.parameter
        mapping = parameter._hp_mapping
        if mapping is None:
            return
        master = self._adamw.param_groups[mapping.param_group_index]["params"][0]
        owned, start = mapping.hp_fragment_address, mapping.lp_fragment_address.start
        # Not mapping.get_hp_fragment(kind): DeepSpeed (0.19.8) links the moments of all groups
        # when the first group has stepped, so the second group's are never found.
        state = self._adamw.state[master]
        for kind, flat in (("model", master), *((kind, state[kind]) for kind in MOMENTS)):
            yield StateSlice(kind, flat.data.narrow(0, owned.start, owned.numel), start)

    def _masters(self) -> Sequence[torch.Tensor]:
        return [master for group in self._adamw.param_groups for master in group["params"]]

    def publish_weights(self) -> None:
        """See ``ZeroOptimizer``."""
        self._inner.update_lp_params()


class FlatPartitionedShards(FlatShards):
    """Stage 2: DeepSpeed reduces and shards each gradient as backward produces it."""

    reduces_in_backward = True


class FlatBF16(FlatShards):
    """Stage 1 in bf16 with fp32 sums: DeepSpeed's ``BF16_Optimizer``."""

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """See ``ZeroOptimizer``."""
        held: Any = parameter
        gradient: torch.Tensor = held._hp_grad
        return gradient

    def _discard_gradients(self) -> None:
        """Leave it to DeepSpeed, which has cleared them."""


class ParameterShards(ZeroOptimizer):
    """Stage 3: every parameter is a flat slice, gathered when a layer runs."""

    reduces_in_backward = True

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """Raise: no rank ever has a whole gradient."""
        raise RuntimeError("ZeRO 3 shards gradients in backward; nothing accumulates whole ones")

    def _discard_gradients(self) -> None:
        """Leave it to DeepSpeed, which has cleared them."""

    def state_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """See ``ZeroOptimizer``."""
        parameter: Any = shard.parameter
        start = self._groups.coordinates.data * parameter.ds_tensor.ds_numel
        if start >= parameter.ds_numel:
            return
        for kind in ("model", *MOMENTS):
            # Not get_local_fp32_param: if the state is offloaded, it returns a copy on the device,
            # and values loaded into it are lost (DeepSpeed 0.19).
            data, _ = self._inner._get_fp32_opt_state_partition(
                parameter,
                release_swap_buffers=True,
                optim_state_key=None if kind == "model" else kind,
            )
            yield StateSlice(kind, data, start)

    def _masters(self) -> Sequence[torch.Tensor]:
        masters: Sequence[torch.Tensor] = self._inner.fp32_partitioned_groups_flat
        return masters

    def publish_weights(self) -> None:
        """See ``ZeroOptimizer``."""
        for group in range(len(self._inner.fp32_partitioned_groups_flat)):
            self._inner._reassign_or_swap_out_partitioned_parameters(group)

    def close(self) -> None:
        """See ``ZeroOptimizer``; DeepSpeed (0.19) also keeps modules in a list and in a cache."""
        parameters = self._inner.parameter_offload
        coordinator = type(parameters.get_param_coordinator())
        offload = sys.modules[type(parameters).__module__]
        super().close()
        offload.FWD_MODULE_STACK.clear()
        for method in vars(coordinator).values():
            for cell in getattr(method, "__closure__", None) or ():
                if hasattr(cell.cell_contents, "cache_clear"):
                    cell.cell_contents.cache_clear()
