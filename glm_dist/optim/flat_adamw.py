"""ZeRO 0 and 1: AdamW over flat buffers, with fp32 main gradients and no wait for the device.

Micro-batches accumulate in one fp32 buffer. At the end of a step each bucket is summed over the
replicas: whole (stage 0), or each replica gets its part (stage 1). Clipping, the average over
replicas and the loss scale are one divisor, which the fused update reads from the device, as it
does the flag that drops a step whose gradients are not finite (ADR 0019).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.optim.adamw import adamw

from glm_dist.config.parameter_specs import WORD_EMBEDDINGS
from glm_dist.config.schema import OptimizerConfig
from glm_dist.model.main_gradient import MAIN_GRADIENT
from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.arrivals import Arrivals
from glm_dist.optim.flat_buffers import FlatBuffers, OwnRange, plan_buckets
from glm_dist.optim.flat_step import FlatStep
from glm_dist.optim.gradient_norm import GradientNorm
from glm_dist.optim.loss_scale import DynamicLossScale
from glm_dist.optim.state import MOMENTS, OptimizerCounters, PendingStep, Rates, StateSlice
from glm_dist.optim.weight_gathers import WeightGathers
from glm_dist.optim.zero import Accept, ZeroOptimizer
from glm_dist.parallel.exchange import wait_for
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.sequence import has_partial_gradient


@dataclass(frozen=True)
class FlatSettings:
    """Settings of the optimizer apart from AdamW's."""

    shards_state: bool
    """True for ZeRO 1: each replica updates its part of every bucket."""
    bucket_size: int
    """Elements after which a bucket is full."""
    overlaps: bool
    """True to reduce gradients while backward runs, and gather weights while forward runs."""
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
        blocks: Iterable[torch.nn.Module],
    ) -> None:
        """Move the parameters that learn into flat buffers.

        Args:
            shards: Parameters of this rank, initialised.
            config: AdamW's hyperparameters.
            settings: Further settings.
            groups: This rank's process groups.
            blocks: Modules that hold all parameters; of nested ones the inner first.
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
            [(r.shard, r.within(self._parts[r.bucket].gradient)) for r in self._ranges.values()],
            tensor_rank=groups.coordinates.tensor,
            group=groups.world if is_sharded else groups.model,
            device=self._device,
        )
        self._last: FlatStep | None = None
        self._reductions: list[dist.Work] = []
        self._arrivals: Arrivals | None = None
        if settings.overlaps and self._replicas > 1:
            self._arrivals = Arrivals(self._buffers, self._begin_reduction)
        self._waits_in_forward = settings.overlaps and is_sharded
        self._gathers = WeightGathers(
            self._buffers.bucket_of(), blocks if self._waits_in_forward else ()
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
        if self._scale is not None:
            self._settle()  # the scale of this step depends on it
        self._buffers.gradients.zero_()
        if self._arrivals is not None:
            self._arrivals.expect(micro_batches)

    def reduce_gradients(self) -> None:
        """See ``ZeroOptimizer``."""
        if self._arrivals is not None:
            self._arrivals.finish()
        elif self._replicas > 1:
            for bucket in range(len(self._parts)):
                self._begin_reduction(bucket)
        for reduction in self._reductions:
            wait_for(reduction)
        self._reductions.clear()

    def _begin_reduction(self, bucket: int) -> None:
        """Begin to sum a bucket's gradients over the replicas, or only this rank's part of them."""
        whole, group = self._buffers.whole_gradients(bucket), self._groups.data
        if self._parts_per_bucket == 1:
            work = dist.all_reduce(whole, group=group, async_op=True)
        else:
            own = self._parts[bucket].gradient
            work = dist.reduce_scatter_tensor(own, whole, group=group, async_op=True)
        self._reductions.append(work)

    @torch.no_grad()
    def step(self, rates: Rates, accept: Accept | None = None) -> PendingStep:
        """See ``ZeroOptimizer``."""
        norm_of_sums, squares = self._norm()
        divisor = self._replicas * (self.loss_scale or 1.0)
        norm = norm_of_sums / divisor
        is_refused = accept is not None and bool(torch.isfinite(norm)) and not accept(norm)
        if not is_refused:
            self._update(norm, divisor=divisor, rate=self._rate(rates))
        if self._scale is not None:
            norm = norm.nan_to_num(nan=torch.inf, posinf=torch.inf)  # it overflowed, either way
        self._last = FlatStep(
            norm,
            squares,
            self._norm.names,
            is_refused=is_refused,
            is_recoverable=self._scale is not None and self._scale.may_shrink and not is_refused,
            settled=self._count,
        )
        return self._last

    def _rate(self, rates: Rates) -> torch.Tensor:
        """Return the learning rate [] in fp32, chosen on the device if its step is not settled."""
        applied = torch.full((), rates.if_applied, device=self._device)
        if self._last is None or self._last.is_settled:
            return applied
        dropped = torch.full((), rates.if_dropped, device=self._device)
        if self._last.is_refused:
            return dropped
        return applied.where(torch.isfinite(self._last.norm), dropped)

    def _settle(self) -> None:
        """Wait for the last step."""
        if self._last is not None:
            self._last.settle()

    def _count(self, step: FlatStep, is_applied: bool) -> None:
        """Count a step whose outcome is known."""
        self._updates += is_applied
        self._skipped += not is_applied
        if self._scale is not None and not step.is_refused:
            self._scale.update(overflowed=not is_applied)
        if step is self._last:
            self._gathers.complete()  # else the next step's weights are on their way

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
        self._begin_to_publish()
        if not self._waits_in_forward:
            self._gathers.complete()

    # --- state ---

    def _trained_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """See ``ZeroOptimizer``."""
        own = self._ranges.get(id(shard.parameter))
        if own is None:
            return
        part = self._parts[own.bucket]
        for kind, flat in (("model", part.master), *part.moments.items()):
            yield StateSlice(kind, own.within(flat), own.in_parameter)

    def _masters(self) -> Sequence[torch.Tensor]:
        return [part.master for part in self._parts]

    def ensure_moments(self) -> None:
        """Do nothing: they exist from the start."""

    def prepare_for_load(self, *, updates: int) -> None:
        """See ``ZeroOptimizer``."""
        self._settle()
        self._updates = updates
        for part in self._parts:
            part.updates.fill_(updates)
            for moment in part.moments.values():
                moment.zero_()

    def publish_weights(self) -> None:
        """See ``ZeroOptimizer``."""
        self._begin_to_publish()
        self._gathers.complete()

    @torch.no_grad()
    def _begin_to_publish(self) -> None:
        """Copy masters into the model, and begin to gather from the first layer to the last."""
        for number, part in reversed(list(enumerate(self._parts))):
            own = self._buffers.own_weights(number)
            if own.dtype != part.master.dtype:
                own.copy_(part.master)
            if self._parts_per_bucket > 1:
                whole, group = self._buffers.whole_weights(number), self._groups.data
                work = dist.all_gather_into_tensor(whole, own, group=group, async_op=True)
                self._gathers.add(number, work)

    def counters(self) -> OptimizerCounters:
        """See ``ZeroOptimizer``."""
        self._settle()
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
        self._gathers.close()
        self._buffers.close()
        self._parts, self._ranges, self._last = [], {}, None
        del self._norm, self._buffers, self._arrivals, self._gathers


def _is_late(shard: ParameterShard) -> bool:
    """Return True if a gradient is complete only after the whole backward.

    The word table gets gradients from both ends of the model, and partial gradients are summed over
    tensor ranks after the last micro-batch.
    """
    return shard.name == WORD_EMBEDDINGS or has_partial_gradient(shard.parameter)
