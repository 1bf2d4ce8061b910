"""Master weights and Adam moments of one rank, as fragments of the whole model's.

Where they are depends on the ZeRO stage: 0 keeps them per parameter, 1 and 2 in flat partitions
with a map to each parameter, 3 as an equal flat slice of every parameter. From here on a fragment
is a fragment, and any layout reads what any other wrote.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from glm_dist.checkpoint.fragments import Fragment
from glm_dist.model.parameters import ParameterShard

MOMENTS = ("exp_avg", "exp_avg_sq")


def training_fragments(
    shards: Sequence[ParameterShard], optimizer: Any, *, zero_stage: int, data_rank: int
) -> dict[str, Fragment]:
    """What this rank owns of the training state.

    Args:
        shards: Parameters of this rank.
        optimizer: DeepSpeed's wrapper, or torch's AdamW at stage 0; it has made a step, or
            ``prepare_for_load`` or ``ensure_moments`` was called.
        zero_stage: 0 to 3.
        data_rank: Place among the replicas.

    Returns:
        ``model.<name>`` (fp32 master weight), ``exp_avg.<name>`` and ``exp_avg_sq.<name>``.
    """
    fragments = {}
    for shard in shards:
        for kind in ("model", *MOMENTS):
            data, start = _owned(
                shard, optimizer, kind=kind, zero_stage=zero_stage, data_rank=data_rank
            )
            if data is None:
                continue
            fragments[f"{kind}.{shard.name}"] = Fragment(
                data,
                global_shape=shard.global_shape,
                offset=shard.offset,
                local_shape=shard.local_shape,
                start=start,
                rows=shard.rows or None,
                # The last stage's copy of the word table is cut elsewhere than the first's.
                is_saved=not getattr(shard.parameter, "ds_pipe_replicated", False),
            )
    return fragments


def _owned(
    shard: ParameterShard, optimizer: Any, *, kind: str, zero_stage: int, data_rank: int
) -> tuple[torch.Tensor | None, int]:
    """Flat data of this rank and the element of the local parameter where it begins."""
    parameter: Any = shard.parameter
    if zero_stage == 0:
        data = parameter.data if kind == "model" else optimizer.state[parameter][kind]
        return data.view(-1), 0
    if zero_stage == 3:
        start = data_rank * parameter.ds_tensor.ds_numel
        if start >= parameter.ds_numel:
            return None, 0
        # Not get_local_fp32_param: where the state is offloaded that is a copy on the device, and
        # what a checkpoint writes into it is lost (DeepSpeed 0.19).
        fragment, _ = optimizer._get_fp32_opt_state_partition(
            parameter,
            release_swap_buffers=True,
            optim_state_key=None if kind == "model" else kind,
        )
        return fragment, start
    mapping = parameter._hp_mapping
    if mapping is None:
        return None, 0
    flat = _adamw(optimizer, zero_stage).param_groups[mapping.param_group_index]["params"][0]
    if kind != "model":
        # Not mapping.get_hp_fragment(kind): DeepSpeed (0.19.8) links the moments of all groups
        # when the first group has stepped, so those of the second are never found.
        flat = optimizer.optimizer.state[flat][kind]
    owned = mapping.hp_fragment_address
    return flat.data.narrow(0, owned.start, owned.numel), mapping.lp_fragment_address.start


def _flat_masters(optimizer: Any, zero_stage: int) -> Iterator[torch.Tensor]:
    """The tensors that AdamW itself updates."""
    if zero_stage == 3:
        yield from optimizer.fp32_partitioned_groups_flat
        return
    for group in _adamw(optimizer, zero_stage).param_groups:
        yield from group["params"]


def _adamw(optimizer: Any, zero_stage: int) -> torch.optim.AdamW:
    adamw: torch.optim.AdamW = optimizer if zero_stage == 0 else optimizer.optimizer
    return adamw


def prepare_for_load(optimizer: Any, *, zero_stage: int, update: int) -> None:
    """Create the moments that a checkpoint is about to fill, and set AdamW's update counter.

    Args:
        optimizer: DeepSpeed's wrapper, or torch's AdamW at stage 0.
        zero_stage: 0 to 3.
        update: Optimizer updates that the checkpoint has seen.
    """
    state = _adamw(optimizer, zero_stage).state
    for master in _flat_masters(optimizer, zero_stage):
        state[master] = {
            "step": torch.tensor(float(update), device=master.device),
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
        }


def ensure_moments(optimizer: Any, *, zero_stage: int) -> None:
    """Create the moments of an optimizer that has made no update; leave others as they are.

    AdamW creates them in its first update (DeepSpeed 0.19.8, too), which fp16 overflows put off.

    Args:
        optimizer: DeepSpeed's wrapper, or torch's AdamW at stage 0.
        zero_stage: 0 to 3.
    """
    if not _adamw(optimizer, zero_stage).state:
        prepare_for_load(optimizer, zero_stage=zero_stage, update=0)


def publish_weights(optimizer: Any, *, zero_stage: int) -> None:
    """Copy loaded master weights into the model, on every replica. Collective over replicas.

    Args:
        optimizer: DeepSpeed's wrapper, or torch's AdamW at stage 0.
        zero_stage: 0 to 3.
    """
    if zero_stage in (1, 2):
        optimizer.update_lp_params()
    elif zero_stage == 3:
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)


def update_count(optimizer: Any, *, zero_stage: int) -> int:
    """Updates AdamW has made; fewer than steps when fp16 overflows skipped some."""
    state = _adamw(optimizer, zero_stage).state
    for master in _flat_masters(optimizer, zero_stage):
        return int(state[master]["step"])
    return 0
