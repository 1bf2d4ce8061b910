"""Adapter of DeepSpeed's optimizers: stages 2 and 3, and stage 1 with an offloaded optimizer.

Only this file and ``sharded.py`` use DeepSpeed's internals (0.19.8).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.state import (
    LOSS_SCALER_FIELDS,
    MOMENTS,
    Number,
    OptimizerCounters,
    PendingStep,
    Rates,
    SettledStep,
    StepOutcome,
)
from glm_dist.optim.zero import Accept, ZeroOptimizer
from glm_dist.parallel.groups import ParallelGroups


class DeepSpeedOptimizer(ZeroOptimizer):
    """Parts that all of DeepSpeed's optimizers have in common."""

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

    def begin_accumulation(self, micro_batches: int) -> None:
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

    def step(self, rates: Rates, accept: Accept | None = None) -> PendingStep:
        """See ``ZeroOptimizer``; DeepSpeed waits for the device, so the step is settled."""
        for group in self._inner.param_groups:
            group["lr"] = rates.if_applied  # every step before is settled
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
        return SettledStep(
            StepOutcome(
                norm,
                is_skipped=not is_applied,
                is_recoverable=is_recoverable,
                is_refused=refused is not None,
                non_finite=() if is_recoverable or is_applied else self._non_finite,
            )
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
