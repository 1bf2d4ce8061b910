"""Training state that must survive a restart: tensors as fragments, and a few counters.

There is no generator state: dropout is seeded by step, rows are addressed by index. The state
consists of weights, moments, counters and, in fp16, the loss scale; any layout can read it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import torch

from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.load import WEIGHTS, CheckpointInfo, load_tensors
from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.model.parameters import ParameterShard
from glm_dist.optim.state import OptimizerCounters, StateSlice
from glm_dist.train.engine import TrainingEngine


class CheckpointWriter(Protocol):
    """Interface of ``save_checkpoint`` and of writers that begin a save in the background."""

    def __call__(
        self,
        directory: Path,
        *,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        extra: Mapping[str, Json],
        layout: Mapping[str, int],
        keep_last: int,
        upkeep: Upkeep | None,
    ) -> Path:
        """Write a checkpoint, or begin to; return its folder."""


def save_state(
    engine: TrainingEngine,
    directory: Path,
    *,
    step: int,
    extra: Mapping[str, Json],
    keep_last: int,
    write: CheckpointWriter = save_checkpoint,
    upkeep: Upkeep | None = None,
) -> Path:
    """Write a checkpoint. Collective over all ranks.

    Args:
        engine: Model and optimizer of this rank.
        directory: The run's checkpoints folder.
        step: Optimizer steps done.
        extra: Further state of the run, equal on all ranks.
        keep_last: Newest verified checkpoints to keep.
        write: Writes the tensors; returns the folder.
        upkeep: Rules of this job, the same object for all its saves.

    Returns:
        The folder that ``write`` returned.

    Raises:
        CheckpointError: On every rank, if any rank could not write.
    """
    engine.zero.ensure_moments()
    return write(
        directory,
        step=step,
        tensors=training_fragments(engine),
        extra={**extra, **_counters_to_json(engine.zero.counters())},
        layout=engine.groups.layout.sizes(),
        keep_last=keep_last,
        upkeep=upkeep,
    )


def restore_state(engine: TrainingEngine, info: CheckpointInfo) -> int:
    """Restore a checkpoint of any layout. Collective over all ranks.

    Args:
        engine: Freshly built; its weights and moments are overwritten.
        info: Checkpoint to restore.

    Returns:
        Optimizer steps done.

    Raises:
        CheckpointError: The checkpoint belongs to another model.
    """
    counters = _counters_from_json(info.manifest.extra)
    engine.zero.prepare_for_load(updates=counters.updates)
    load_tensors(info, training_fragments(engine))
    engine.zero.publish_weights()
    engine.zero.restore_counters(counters)
    return info.manifest.step


def training_fragments(engine: TrainingEngine) -> dict[str, Fragment]:
    """Describe this rank's part of the training state.

    Returns:
        ``model.<name>`` (fp32 master weight), ``exp_avg.<name>`` and ``exp_avg_sq.<name>``; without
        names whose elements all belong to other replicas.
    """
    return {
        f"{part.kind}.{shard.name}": _fragment(shard, part, shard.global_shape)
        for shard in engine.shards
        for part in engine.zero.state_slices(shard)
    }


def load_weights(
    engine: TrainingEngine, info: CheckpointInfo, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Replace weights of the model by those of a checkpoint. Collective over all ranks.

    Args:
        engine: Model and optimizer of this rank; moments and counters stay as they are.
        info: The checkpoint.
        shapes: Saved shape of each weight to load, by name.
    """
    # Masters rather than the model's parameters: in 16 bits these have fewer digits than was saved.
    engine.zero.ensure_moments()
    prefixes = [WEIGHTS + name for name in shapes]
    load_tensors(info, _weight_fragments(engine, shapes), prefixes=prefixes)
    engine.zero.publish_weights()


def _weight_fragments(
    engine: TrainingEngine, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Fragment]:
    """Describe this rank's part of the master weights that a checkpoint has.

    Args:
        engine: Model and optimizer of this rank, with moments.
        shapes: Saved shape of each weight to load; fewer rows than here if a table has grown.

    Returns:
        ``model.<name>``.
    """
    fragments = {}
    for shard in engine.shards:
        if shard.name not in shapes:
            continue
        for part in engine.zero.state_slices(shard):
            if f"{part.kind}." == WEIGHTS:
                fragments[WEIGHTS + shard.name] = _fragment(shard, part, shapes[shard.name])
    return fragments


def _fragment(shard: ParameterShard, part: StateSlice, saved_shape: tuple[int, ...]) -> Fragment:
    has_grown = saved_shape != shard.global_shape
    return Fragment(
        part.data,
        global_shape=saved_shape,
        offset=shard.offset,
        # Elements past the end are neither read nor written; only unsharded tables grow.
        local_shape=saved_shape if has_grown else shard.local_shape,
        start=part.start,
        rows=shard.rows or None,
        # The last stage shards its copy of the word table at other indices than the first stage.
        is_saved=not shard.is_tied_copy,
    )


def _counters_to_json(counters: OptimizerCounters) -> dict[str, Json]:
    scaler = counters.loss_scaler
    return {
        "optimizer_updates": counters.updates,
        "skipped_steps": counters.skipped_steps,
        "loss_scaler": None if scaler is None else dict(scaler),
    }


def _counters_from_json(extra: Mapping[str, Json]) -> OptimizerCounters:
    scaler = extra["loss_scaler"]
    return OptimizerCounters(
        updates=int(str(extra["optimizer_updates"])),
        skipped_steps=int(str(extra["skipped_steps"])),
        loss_scaler=cast("Mapping[str, float]", scaler) if isinstance(scaler, dict) else None,
    )
