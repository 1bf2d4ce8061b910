"""What a run must remember between two lives: tensors by fragment, and a few numbers.

There is no generator state: dropout is seeded by step, rows are addressed by index. So the state is
weights, moments, counters and, in fp16, the loss scale; any layout can read it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm_dist.checkpoint.load import CheckpointInfo, load_tensors
from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.optimizer_state import (
    ensure_moments,
    prepare_for_load,
    publish_weights,
    training_fragments,
    update_count,
)
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.train.engine import TrainingEngine

LOSS_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def save_state(
    engine: TrainingEngine,
    directory: Path,
    *,
    step: int,
    extra: Mapping[str, Json],
    keep_last: int,
) -> Path:
    """Write a checkpoint. Collective over all ranks.

    Args:
        engine: Model and optimizer of this rank.
        directory: The run's checkpoints folder.
        step: Optimizer steps done.
        extra: What else the run wants back, equal on all ranks.
        keep_last: Newest checkpoints that stay.

    Returns:
        The finished folder.

    Raises:
        CheckpointError: On every rank, if any rank could not write.
    """
    ensure_moments(engine.optimizer, zero_stage=engine.zero_stage)
    return save_checkpoint(
        directory,
        step=step,
        tensors=_fragments(engine),
        extra={
            **extra,
            "optimizer_updates": update_count(engine.optimizer, zero_stage=engine.zero_stage),
            "skipped_steps": engine.skipped_steps,
            "loss_scaler": _loss_scaler_state(engine.optimizer),
        },
        layout=engine.groups.layout.sizes(),
        keep_last=keep_last,
    )


def restore_state(engine: TrainingEngine, info: CheckpointInfo) -> int:
    """Continue from a checkpoint of any layout. Collective over all ranks.

    Args:
        engine: Freshly built; its weights and moments are overwritten.
        info: Where from.

    Returns:
        Optimizer steps done.

    Raises:
        CheckpointError: The checkpoint is of another model.
    """
    extra = info.manifest.extra
    updates = int(str(extra["optimizer_updates"]))
    prepare_for_load(engine.optimizer, zero_stage=engine.zero_stage, update=updates)
    load_tensors(info, _fragments(engine))
    publish_weights(engine.optimizer, zero_stage=engine.zero_stage)
    engine.restore_skipped_steps(int(str(extra["skipped_steps"])))
    scaler_state = extra["loss_scaler"]
    if isinstance(scaler_state, dict):
        _restore_loss_scaler(engine.optimizer, scaler_state)
    return info.manifest.step


def _fragments(engine: TrainingEngine) -> dict[str, Any]:
    return dict(
        training_fragments(
            engine.shards,
            engine.optimizer,
            zero_stage=engine.zero_stage,
            data_rank=engine.groups.coordinates.data,
        )
    )


def _loss_scaler_state(optimizer: Any) -> Json:
    """Numbers of a dynamic loss scaler; None where there is none (fp32, bf16)."""
    scaler = getattr(optimizer, "loss_scaler", None)
    if scaler is None or not getattr(scaler, "dynamic", False):
        return None
    return {name: getattr(scaler, name) for name in LOSS_SCALER_FIELDS if hasattr(scaler, name)}


def _restore_loss_scaler(optimizer: Any, state: Mapping[str, Json]) -> None:
    scaler = getattr(optimizer, "loss_scaler", None)
    if scaler is None or not getattr(scaler, "dynamic", False):
        return
    for name, value in state.items():
        setattr(scaler, name, value)
