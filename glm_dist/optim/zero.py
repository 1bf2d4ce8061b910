"""ZeRO behind one interface: what training and checkpoints need of a sharded optimizer.

Each stage of DeepSpeed's ZeRO stores gradients, master weights and moments differently. One adapter
per layout has the same interface, so no other code checks the stage. Stages 1 to 3 are in
``sharded.py``; only these two files use DeepSpeed's internals (0.19.8).

==============  =======================================================================
``PlainAdamW``  stage 0: torch's AdamW, state per parameter
``FlatShards``  stages 1 and 2: one flat partition per group, mapped to parameters
``FlatBF16``    stage 1 in bf16: the same, with separate fp32 gradients
``ParameterShards``  stage 3: an equal flat slice of every parameter
==============  =======================================================================
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
import torch.distributed as dist

from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.state import (
    LOSS_SCALER_FIELDS,
    MOMENTS,
    Number,
    OptimizerCounters,
    StateSlice,
    StepOutcome,
)
from glm_dist.parallel.groups import ParallelGroups

Accept: TypeAlias = Callable[[torch.Tensor], bool]
"""Says of a finite gradient norm [] whether to apply its update."""


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
        self._accepts: Accept | None = None
        self._refused_norm: torch.Tensor | None = None
        self._non_finite: tuple[str, ...] = ()
        self._replaced: list[str] = []
        self._updates = 0
        self._watch_update()
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
        """Updates dropped: fp16 overflows, gradients that were not finite or refused."""
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

    def step(self, learning_rate: float, accept: Accept | None = None) -> StepOutcome:
        """Clip and update, unless a gradient is not finite; then no weight changes on any rank.

        Args:
            learning_rate: Rate of every parameter group.
            accept: Called with the finite norm [] before the update; if it returns False, the
                update is dropped. May be collective, and must return the same on all ranks.
        """
        for group in self._inner.param_groups:
            group["lr"] = learning_rate
        is_recoverable = self._may_shrink_loss_scale()
        self._accepts, self._refused_norm, self._non_finite = accept, None, ()
        scaler = self._scaler_state()
        norm, is_applied = self._update()
        self._updates += is_applied
        if not is_applied:
            self._discard_gradients()
        refused = self._refused()
        if refused is not None:
            # DeepSpeed took it for an overflow; neither its norm nor the smaller scale holds.
            norm, is_recoverable = refused, False
            self._set_scaler(scaler)
        return StepOutcome(
            norm,
            is_skipped=not is_applied,
            is_recoverable=is_recoverable,
            is_refused=refused is not None,
            non_finite=() if is_recoverable or is_applied else self._non_finite,
        )

    def _update(self) -> tuple[torch.Tensor, bool]:
        """Clip and update; return the norm [] and whether DeepSpeed did not drop the update."""
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm())
        return norm, bool(self._engine.was_step_applied())

    def _refused(self) -> torch.Tensor | None:
        """Return the norm [] of the update that the caller has just refused, if any."""
        return self._refused_norm

    def _is_accepted(self, norm: torch.Tensor) -> bool:
        """Ask the caller about a finite norm []."""
        if self._accepts is None or self._accepts(norm):
            return True
        self._refused_norm = norm
        return False

    @abstractmethod
    def _watch_update(self) -> None:
        """Let DeepSpeed ask ``_is_accepted`` about the norm, and drop a refused update itself.

        It takes a refusal for an overflow and clears its gradients. Before it does, the names of
        those that are not finite are noted.
        """

    def _replace(self, name: str, function: Callable[..., Any]) -> None:
        """Replace a method of DeepSpeed's optimizer until ``close``."""
        setattr(self._inner, name, function)
        self._replaced.append(name)

    def _note_non_finite(self, named: Iterable[tuple[str, torch.Tensor | None]]) -> None:
        """Keep the names of gradients that are not finite; DeepSpeed clears them twice."""
        if self._refused_norm is None and not self._non_finite:
            self._non_finite = tuple(
                dict.fromkeys(
                    name
                    for name, gradient in named
                    if gradient is not None and not bool(torch.isfinite(gradient).all())
                )
            )

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

    def state_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """Yield the parts of a parameter that this rank updates; none if other replicas do.

        A frozen parameter is its own state: it has no moments, and the dtype of the model.
        Needs moments: call ``ensure_moments`` or ``prepare_for_load`` before.
        """
        return self._trained_slices(shard) if shard.is_trained else self._frozen_slices(shard)

    @abstractmethod
    def _trained_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """Yield the parts of master weight and moments that this rank updates."""

    def _frozen_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """Yield the parts of a frozen parameter that this rank holds."""
        yield StateSlice("model", shard.parameter.data.view(-1), 0)

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
        self._updates = updates
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
        return OptimizerCounters(
            updates=self._updates,
            skipped_steps=self.skipped_steps,
            loss_scaler=self._scaler_state(),
        )

    def _scaler_state(self) -> Mapping[str, Number] | None:
        scaler = self._dynamic_scaler()
        if scaler is None:
            return None
        return {name: getattr(scaler, name) for name in LOSS_SCALER_FIELDS}

    def restore_counters(self, counters: OptimizerCounters) -> None:
        """Continue the counts of an earlier run; ``prepare_for_load`` has set the updates."""
        self._engine.skipped_steps = counters.skipped_steps
        self._set_scaler(counters.loss_scaler)

    def _set_scaler(self, values: Mapping[str, Number] | None) -> None:
        scaler = self._dynamic_scaler()
        if scaler is not None and values is not None:
            for name, value in values.items():
                setattr(scaler, name, value)

    def _dynamic_scaler(self) -> Any:
        return self._inner.loss_scaler if self.has_loss_scale else None

    def close(self) -> None:
        """Remove DeepSpeed's hooks and release the memory of gradients, weights and moments.

        Hooks on parameters hold the engine and the engine holds the parameters; without this
        neither is ever freed.
        """
        for name in self._replaced:
            delattr(self._inner, name)
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
        is_finite = bool(torch.isfinite(norm))
        if not is_finite:
            self._note_non_finite((s.name, s.parameter.grad) for s in self.shards)
        if not is_finite or not self._is_accepted(norm):
            self._engine.skipped_steps += 1
            return norm, False
        if self._clip > 0.0:
            factor = (self._clip / (norm + 1e-6)).clamp(max=1.0)
            gradients = [s.parameter.grad for s in self.shards if s.parameter.grad is not None]
            if gradients:
                torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        self._engine.step()
        return norm, True

    def _watch_update(self) -> None:
        """Do nothing: ``_update`` asks by itself."""

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

    def _trained_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """See ``ZeroOptimizer``."""
        yield StateSlice("model", shard.parameter.data.view(-1), 0)
        for kind in MOMENTS:
            yield StateSlice(kind, self._inner.state[shard.parameter][kind].view(-1), 0)

    def _masters(self) -> Sequence[torch.Tensor]:
        return [parameter for group in self._inner.param_groups for parameter in group["params"]]

    def publish_weights(self) -> None:
        """Do nothing: the model's parameters are the master weights."""
