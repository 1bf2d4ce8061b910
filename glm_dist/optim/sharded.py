"""Adapters of ZeRO's stages 1 to 3; ``zero.py`` has their interface and says what each stands for.

DeepSpeed computes the norm and applies the update in one call. To drop an update whose norm the
caller refuses, the adapter gives DeepSpeed an invalid norm: it then clears its gradients as after
an overflow.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.deepspeed_adapter import DeepSpeedOptimizer
from glm_dist.optim.state import MOMENTS, StateSlice

DROPPED_NORM = -1.0
"""DeepSpeed's own mark of a norm that is not finite."""


class ShardedOptimizer(DeepSpeedOptimizer):
    """Parts that DeepSpeed's stages 1 to 3 have in common."""

    def _note_before_clearing(
        self, gradients: Callable[[], Iterator[tuple[str, torch.Tensor | None]]]
    ) -> None:
        """Note which gradients are not finite before DeepSpeed clears them."""
        inner = self._inner
        clear = inner.zero_grad

        def noting_clear(*arguments: Any, **options: Any) -> None:
            if inner.overflow:
                self._note_non_finite(gradients())
            clear(*arguments, **options)

        self._replace("zero_grad", noting_clear)

    def _averaged_gradients(
        self, groups: Sequence[Sequence[torch.Tensor]], *, is_offloaded: bool
    ) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Yield this rank's parts of the reduced gradients; offloaded ones as their norms."""
        inner, names = self._inner, {id(s.parameter): s.name for s in self.shards}
        for group, parameters in enumerate(groups):
            if is_offloaded:
                norms = inner.norm_for_param_grads
                for p in parameters:
                    norm = norms.get(inner.get_param_id(p))
                    if id(p) in names:
                        yield names[id(p)], None if norm is None else torch.as_tensor(norm)
                continue
            for p, gradient in zip(
                parameters, inner.averaged_gradients.get(group) or (), strict=False
            ):
                if id(p) in names:  # else the number in place of an empty group
                    yield names[id(p)], gradient


class FlatShards(ShardedOptimizer):
    """Stages 1 and 2: flat partitions of each parameter group."""

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """See ``ZeroOptimizer``; stage 1 only, as stage 2 has reduced its gradients already."""
        gradient: torch.Tensor = self._inner.get_gradient_for_reduction(parameter)
        return gradient

    def reduce_gradients(self) -> None:
        """See ``ZeroOptimizer``."""
        if not any(shard.is_trained for shard in self.shards):
            self._prepare_for_no_gradients()
        super().reduce_gradients()

    def _prepare_for_no_gradients(self) -> None:
        # DeepSpeed (0.19) makes these buffers when the first gradient arrives.
        self._inner.setup_buckets()

    def _watch_update(self) -> None:
        inner = self._inner
        norm_of = inner.scaled_global_norm

        def judged_norm(*arguments: Any, **options: Any) -> torch.Tensor:
            norm: torch.Tensor = norm_of(*arguments, **options)
            if self._accepts is None:
                return norm  # looking at it would wait for the device
            is_finite = bool(torch.isfinite(norm) & (norm >= 0))
            if is_finite and not self._is_accepted(norm / float(inner.loss_scale)):
                return torch.full_like(norm, DROPPED_NORM)
            return norm

        self._replace("scaled_global_norm", judged_norm)
        self._note_before_clearing(
            lambda: self._averaged_gradients(
                inner.params_in_partition, is_offloaded=inner.cpu_offload
            )
        )

    def _discard_gradients(self) -> None:
        # DeepSpeed 0.19 does so only if the optimizer is not offloaded.
        self._inner.averaged_gradients.update(dict.fromkeys(self._inner.averaged_gradients))

    def _trained_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
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


class ParameterShards(ShardedOptimizer):
    """Stage 3: every parameter is a flat slice, gathered when a layer runs."""

    reduces_in_backward = True

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """Raise: no rank ever has a whole gradient."""
        raise RuntimeError("ZeRO 3 shards gradients in backward; nothing accumulates whole ones")

    def _discard_gradients(self) -> None:
        """Leave it to DeepSpeed, which has cleared them."""

    def _watch_update(self) -> None:
        inner = self._inner
        norms_of = inner._get_norm_groups

        def judged_norms() -> list[torch.Tensor]:
            norms: list[torch.Tensor] = norms_of()
            if self._accepts is None:
                return norms  # looking at them would wait for the device
            is_finite = all(bool(torch.isfinite(norm) & (norm >= 0)) for norm in norms)
            norm = torch.stack(norms).double().square().sum().sqrt()
            if is_finite and not self._is_accepted(norm / float(inner.loss_scale)):
                return [torch.full_like(each, DROPPED_NORM) for each in norms]
            return norms

        self._replace("_get_norm_groups", judged_norms)
        self._note_before_clearing(
            lambda: self._averaged_gradients(
                inner.fp16_groups, is_offloaded=inner.offload_optimizer
            )
        )

    def _trained_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
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

    def _frozen_slices(self, shard: ParameterShard) -> Iterator[StateSlice]:
        """See ``ZeroOptimizer``."""
        parameter: Any = shard.parameter
        start = self._groups.coordinates.data * parameter.ds_tensor.ds_numel
        if start < parameter.ds_numel:
            yield StateSlice("model", parameter.ds_tensor.data.view(-1), start)

    def publish_weights(self) -> None:
        """See ``ZeroOptimizer``."""
        inner = self._inner
        # Small parameters stay gathered between steps; their copies would keep the old values.
        inner._partition_all_parameters()
        for group in range(len(inner.fp32_partitioned_groups_flat)):
            inner._reassign_or_swap_out_partitioned_parameters(group)
        if inner.persistent_parameters:
            inner.persistent_parameters[0].all_gather(inner.persistent_parameters)

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
