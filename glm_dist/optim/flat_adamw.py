"""ZeRO 0 and 1: AdamW over flat buffers, with fp32 main gradients and no wait for the device.

Micro-batches accumulate in one fp32 buffer. At the end of a step each bucket is summed over the
replicas: whole (stage 0), or each replica gets its part (stage 1). Clipping, the average over
replicas and the loss scale are one divisor, which the fused update reads from the device, as it
does the flag that drops a step whose gradients are not finite (ADR 0019).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.optim.adamw import adamw

from glm_dist.config.parameter_specs import WORD_EMBEDDINGS
from glm_dist.config.schema import OptimizerConfig
from glm_dist.model.main_gradient import MAIN_GRADIENT
from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.flat_buffers import FlatBuffers, OwnRange, plan_buckets
from glm_dist.optim.gradient_norm import GradientNorm
from glm_dist.optim.loss_scale import DynamicLossScale
from glm_dist.optim.state import MOMENTS, OptimizerCounters, StateSlice, StepOutcome
from glm_dist.optim.zero import Accept, ZeroOptimizer
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.sequence import has_partial_gradient


@dataclass(frozen=True)
class FlatSettings:
    """Settings of the optimizer apart from AdamW's."""

    shards_state: bool
    """True for ZeRO 1: each replica updates its part of every bucket."""
    bucket_size: int
    """Elements after which a bucket is full."""
    loss_scale: DynamicLossScale | None
    """Only in fp16."""


@dataclass(frozen=True)
class _Part:
    """This rank's part of a bucket, as AdamW sees it."""

    master: torch.Tensor
    """fp32 weights [n]; a view of the model's if these are fp32."""
    gradient: torch.Tensor
    """A view of the buffer [n]."""
    moments: dict[str, torch.Tensor]
    """fp32 [n] each, by the names in ``MOMENTS``."""
    updates: torch.Tensor
    """Updates made so far [], on the device."""
    decays: bool


class FlatAdamW(ZeroOptimizer):
    """Stages 0 and 1, for any number of pipeline stages."""

    def __init__(
        self,
        shards: Sequence[ParameterShard],
        config: OptimizerConfig,
        *,
        settings: FlatSettings,
        groups: ParallelGroups,
    ) -> None:
        """Move the parameters that learn into flat buffers.

        Args:
            shards: Parameters of this rank, initialised.
            config: AdamW's hyperparameters.
            settings: Further settings.
            groups: This rank's process groups.
        """
        self.shards = shards
        self._config = config
        self._groups = groups
        self._replicas = groups.layout.data_parallel_size
        self._device = shards[0].parameter.device
        self._scale = settings.loss_scale
        self._updates = self._skipped = 0
        is_sharded = settings.shards_state and self._replicas > 1
        self._parts_per_bucket = self._replicas if is_sharded else 1
        self._buffers = FlatBuffers(
            plan_buckets(
                shards,
                bucket_size=settings.bucket_size,
                parts=self._parts_per_bucket,
                is_late=_is_late,
            ),
            index=groups.coordinates.data if is_sharded else 0,
            parts=self._parts_per_bucket,
        )
        self._parts = [self._new_part(number) for number in range(len(self._buffers.buckets))]
        self._ranges: dict[int, OwnRange] = {
            id(own.shard.parameter): own for own in self._buffers.own_ranges()
        }
        self._norm = GradientNorm(
            [
                (own.shard, self._within(self._parts[own.bucket].gradient, own))
                for own in self._ranges.values()
            ],
            tensor_rank=groups.coordinates.tensor,
            group=groups.world if is_sharded else groups.model,
            device=self._device,
        )

    def _new_part(self, bucket: int) -> _Part:
        weights = self._buffers.own_weights(bucket)
        master = weights.float()  # the same tensor if the model is in fp32
        return _Part(
            master=master,
            gradient=self._buffers.own_gradients(bucket),
            moments={kind: torch.zeros_like(master) for kind in MOMENTS},
            updates=torch.zeros((), device=self._device),
            decays=self._buffers.buckets[bucket].decays,
        )

    @staticmethod
    def _within(part: torch.Tensor, own: OwnRange) -> torch.Tensor:
        """Return the elements of one parameter in a part of a bucket."""
        return part.narrow(0, own.in_part, own.numel)

    # --- training ---

    @property
    def has_loss_scale(self) -> bool:
        """See ``ZeroOptimizer``."""
        return self._scale is not None

    @property
    def loss_scale(self) -> float | None:
        """See ``ZeroOptimizer``."""
        return None if self._scale is None else self._scale.cur_scale

    @property
    def skipped_steps(self) -> int:
        """See ``ZeroOptimizer``."""
        return self._skipped

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """See ``ZeroOptimizer``."""
        return loss if self._scale is None else loss * self._scale.cur_scale

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """See ``ZeroOptimizer``."""
        gradient: torch.Tensor = getattr(parameter, MAIN_GRADIENT)
        return gradient

    def begin_accumulation(self, micro_batches: int) -> None:
        """See ``ZeroOptimizer``."""
        self._buffers.gradients.zero_()

    def reduce_gradients(self) -> None:
        """See ``ZeroOptimizer``."""
        if self._replicas == 1:
            return
        for work in [self._begin_reduction(n) for n in range(len(self._parts))]:
            work.wait()

    def _begin_reduction(self, bucket: int) -> dist.Work:
        """Sum a bucket's gradients over the replicas, or only this rank's part of them."""
        whole, group = self._buffers.whole_gradients(bucket), self._groups.data
        if self._parts_per_bucket == 1:
            return dist.all_reduce(whole, group=group, async_op=True)
        own = self._parts[bucket].gradient
        return dist.reduce_scatter_tensor(own, whole, group=group, async_op=True)

    @torch.no_grad()
    def step(self, learning_rate: float, accept: Accept | None = None) -> StepOutcome:
        """See ``ZeroOptimizer``."""
        norm_of_sums, squares = self._norm()
        divisor = self._replicas * (self.loss_scale or 1.0)
        norm = norm_of_sums / divisor
        is_finite = torch.isfinite(norm)
        is_refused = accept is not None and bool(is_finite) and not accept(norm)
        if not is_refused:
            rate = torch.full((), learning_rate, device=self._device)
            self._update(norm, divisor=divisor, rate=rate)
        is_recoverable = self._scale is not None and self._scale.may_shrink and not is_refused
        is_applied = bool(is_finite) and not is_refused
        self._updates += is_applied
        self._skipped += not is_applied
        if self._scale is not None and not is_refused:
            self._scale.update(overflowed=not is_applied)
        names = [
            name
            for name, square in zip(self._norm.names, squares.isfinite().tolist(), strict=True)
            if not square
        ]
        return StepOutcome(
            norm if self._scale is None else norm.where(is_finite, torch.inf),
            is_skipped=not is_applied,
            is_recoverable=is_recoverable,
            is_refused=is_refused,
            non_finite=() if is_recoverable else tuple(names),
        )

    def _update(self, norm: torch.Tensor, *, divisor: float, rate: torch.Tensor) -> None:
        """Update this rank's parts unless the norm is not finite, and gather the weights.

        Args:
            norm: Gradient norm [].
            divisor: Turns the sums in the buffers into gradients.
            rate: Learning rate [] in fp32.
        """
        config = self._config
        divisors = torch.full_like(norm, divisor)
        if config.gradient_clipping > 0.0:
            divisors *= ((norm + 1e-6) / config.gradient_clipping).clamp_(min=1.0)
        divisors = divisors.float()
        is_dropped = (~torch.isfinite(norm)).float()
        for decays in (True, False):
            parts = [part for part in self._parts if part.decays == decays]
            if not parts:
                continue
            adamw(
                [part.master for part in parts],
                [part.gradient for part in parts],
                [part.moments["exp_avg"] for part in parts],
                [part.moments["exp_avg_sq"] for part in parts],
                [],
                [part.updates for part in parts],
                fused=True,
                grad_scale=divisors,
                found_inf=is_dropped,
                amsgrad=False,
                beta1=config.beta1,
                beta2=config.beta2,
                lr=rate,
                weight_decay=config.weight_decay if decays else 0.0,
                eps=config.epsilon,
                maximize=False,
            )
        self.publish_weights()

    # --- state ---

    def _trained_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """See ``ZeroOptimizer``."""
        own = self._ranges.get(id(shard.parameter))
        if own is None:
            return
        part = self._parts[own.bucket]
        for kind, flat in (("model", part.master), *part.moments.items()):
            yield StateSlice(kind, self._within(flat, own), own.in_parameter)

    def _masters(self) -> Sequence[torch.Tensor]:
        return [part.master for part in self._parts]

    def ensure_moments(self) -> None:
        """Do nothing: they exist from the start."""

    def prepare_for_load(self, *, updates: int) -> None:
        """See ``ZeroOptimizer``."""
        self._updates = updates
        for part in self._parts:
            part.updates.fill_(updates)
            for moment in part.moments.values():
                moment.zero_()

    @torch.no_grad()
    def publish_weights(self) -> None:
        """See ``ZeroOptimizer``."""
        works = []
        for number, part in enumerate(self._parts):
            own = self._buffers.own_weights(number)
            if own.dtype != part.master.dtype:
                own.copy_(part.master)
            if self._parts_per_bucket > 1:
                whole = self._buffers.whole_weights(number)
                group = self._groups.data
                works.append(dist.all_gather_into_tensor(whole, own, group=group, async_op=True))
        for work in works:
            work.wait()

    def counters(self) -> OptimizerCounters:
        """See ``ZeroOptimizer``."""
        return OptimizerCounters(
            updates=self._updates,
            skipped_steps=self._skipped,
            loss_scaler=None if self._scale is None else self._scale.state(),
        )

    def restore_counters(self, counters: OptimizerCounters) -> None:
        """See ``ZeroOptimizer``."""
        self._skipped = counters.skipped_steps
        if self._scale is not None and counters.loss_scaler is not None:
            self._scale.restore(counters.loss_scaler)

    def close(self) -> None:
        """See ``ZeroOptimizer``."""
        self._buffers.close()
        self._parts, self._ranges = [], {}
        del self._norm, self._buffers


def _is_late(shard: ParameterShard) -> bool:
    """Return True if a gradient is complete only after the whole backward.

    The word table gets gradients from both ends of the model, and partial gradients are summed over
    tensor ranks after the last micro-batch.
    """
    return shard.name == WORD_EMBEDDINGS or has_partial_gradient(shard.parameter)
