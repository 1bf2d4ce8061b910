"""A trained run as one process can use it: the whole model, its tokenizer, its configuration."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from glm_dist.checkpoint.folders import list_steps, step_name
from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.load import (
    CheckpointInfo,
    find_checkpoint,
    load_tensors,
    read_checkpoint,
)
from glm_dist.config.load import load_config_file
from glm_dist.config.schema import RunConfig
from glm_dist.data.tokenizer.stored import load_stored_tokenizer
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import CheckpointError
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout

WEIGHTS = "model."
"""Prefix of the weights in a checkpoint, beside the optimizer's moments."""


@dataclass(frozen=True)
class TrainedModel:
    """Everything that generation and evaluation need."""

    stage: GLMStage
    """The whole model in evaluation mode."""
    tokenizer: Tokenizer
    config: RunConfig
    step: int


def load_trained(
    run_dir: Path, *, step: int | None, device: torch.device, tokenizer: Path | None = None
) -> TrainedModel:
    """Load the weights of a run. Needs a process group of one process.

    Args:
        run_dir: The run's folder.
        step: Which checkpoint; the newest complete one if None.
        device: Where the model goes.
        tokenizer: Its tokenizer's files, if they are neither in the run's folder nor where they
            were during training.

    Raises:
        CheckpointError: The run has no such checkpoint, or it is damaged.
        ConfigError: The run's saved configuration cannot be read.
        DataError: Its tokenizer is gone, or is not the one it was trained with.
    """
    config = load_config_file(run_dir / "config.yaml")
    info = _checkpoint(run_dir, step)
    opened = load_stored_tokenizer(
        config.tokenizer, run_dir, checkpoint=info.manifest.extra, path=tokenizer
    )
    stage = GLMStage(
        config.model,
        vocab_size=config.tokenizer.vocab_size,
        padded_vocab_size=config.padded_vocab_size,
        dtype=config.precision.dtype,
        groups=build_groups(Layout(), timedelta(minutes=10)),
        device=device,
    )
    load_tensors(
        info,
        {
            WEIGHTS + shard.name: Fragment(shard.parameter.data, global_shape=shard.global_shape)
            for shard in stage.shards()
        },
        prefixes=(WEIGHTS,),
    )
    return TrainedModel(
        stage=stage.eval(),
        tokenizer=opened,
        config=config,
        step=info.manifest.step,
    )


def _checkpoint(run_dir: Path, step: int | None) -> CheckpointInfo:
    checkpoints = run_dir / "checkpoints"
    if step is not None:
        path = checkpoints / step_name(step)
        if not path.exists():
            steps = ", ".join(str(number) for number, _ in list_steps(checkpoints))
            raise CheckpointError(
                key="--step",
                found=step,
                expected=f"the step of a checkpoint in {checkpoints}: {steps or 'there is none'}",
                fix="name another step, or leave --step out for the newest",
            )
        return read_checkpoint(path)
    info = find_checkpoint(checkpoints)
    if info is None:
        raise CheckpointError(
            key=str(checkpoints),
            found="no complete checkpoint",
            expected="a checkpoint to generate from",
            fix="train the run with checkpoint.interval above 0, or name another run",
        )
    return info
