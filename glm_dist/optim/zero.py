"""The optimizer over replicas behind one interface: what training and checkpoints need of it.

Each ZeRO stage stores gradients, master weights and moments differently. Every class here has the
same interface, so no other code checks the stage.

===================  ==========================  ===================================================
``FlatAdamW``        ``flat_adamw.py``           stages 0 and 1: our own, over flat buffers
``FlatShards``       ``sharded.py``              DeepSpeed's stage 1, offloaded, and stage 2
``ParameterShards``  ``sharded.py``              DeepSpeed's stage 3: a flat slice of each parameter
===================  ==========================  ===================================================
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeAlias

import torch

from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.state import OptimizerCounters, PendingStep, Rates, StateSlice

Accept: TypeAlias = Callable[[torch.Tensor], bool]
"""Says of a finite gradient norm [] whether to apply its update."""


class ZeroOptimizer(ABC):
    """AdamW over the replicas of one rank's parameters."""

    reduces_in_backward: ClassVar[bool] = False
    """True if gradients are reduced during backward, through ``forward_backward``; otherwise
    the caller accumulates them and calls ``reduce_gradients`` at the end."""

    shards: Sequence[ParameterShard]
    """Parameters of this rank."""

    # --- training ---

    @property
    @abstractmethod
    def has_loss_scale(self) -> bool:
        """True if gradients may overflow without harm (fp16)."""

    @property
    @abstractmethod
    def loss_scale(self) -> float | None:
        """Factor of the next step's loss in backward; None if there is none (fp32, bf16)."""

    @property
    @abstractmethod
    def skipped_steps(self) -> int:
        """Updates dropped: fp16 overflows, gradients that were not finite or refused."""

    @abstractmethod
    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Multiply a loss [] by the loss scale, if there is one."""

    @abstractmethod
    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return the tensor in which micro-batches accumulate, in fp32 for any model dtype."""

    @abstractmethod
    def begin_accumulation(self, micro_batches: int) -> None:
        """Prepare for the gradients of a step's micro-batches; not if ``reduces_in_backward``."""

    @abstractmethod
    def reduce_gradients(self) -> None:
        """Reduce the accumulated gradients over replicas. Collective over replicas."""

    def forward(self, batch: object) -> Any:
        """Run the wrapped module; only where ``reduces_in_backward``."""
        raise NotImplementedError

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Run backward of one micro-batch; only where ``reduces_in_backward``.

        Args:
            loss: [], already divided by the step's weight.
            is_last: Also reduce the gradients accumulated in the step's earlier micro-batches.
        """
        raise NotImplementedError

    @abstractmethod
    def step(self, rates: Rates, accept: Accept | None = None) -> PendingStep:
        """Clip and update, unless a gradient is not finite; then no weight changes on any rank.

        Args:
            rates: Rates of every parameter group; the previous step may not be settled.
            accept: Called with the finite norm [] before the update; if it returns False, the
                update is dropped. May be collective, and must return the same on all ranks.
        """

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

    @abstractmethod
    def ensure_moments(self) -> None:
        """Create the moments of an optimizer that has made no update yet, if they are missing."""

    @abstractmethod
    def prepare_for_load(self, *, updates: int) -> None:
        """Clear the moments that a checkpoint is about to fill, and set AdamW's update counter.

        Args:
            updates: Optimizer updates made before the checkpoint.
        """

    @abstractmethod
    def publish_weights(self) -> None:
        """Copy master weights into the model, on every replica. Collective over replicas."""

    @abstractmethod
    def counters(self) -> OptimizerCounters:
        """Return the counters that a resumed run restores."""

    @abstractmethod
    def restore_counters(self, counters: OptimizerCounters) -> None:
        """Continue the counts of an earlier run; ``prepare_for_load`` has set the updates."""

    @abstractmethod
    def close(self) -> None:
        """Remove hooks and release the memory of gradients, weights and moments."""
