"""Official checkpoints, written for any number of model-parallel ranks."""

from collections.abc import Mapping
from pathlib import Path

import torch

from glm_dist.config.schema import ModelConfig
from glm_dist.config.wording import divisors, either
from glm_dist.convert.dtypes import cast
from glm_dist.convert.official import (
    CLASSIFIER,
    CLASSIFIER_PREFIX,
    OfficialParameter,
    official_parameters,
)
from glm_dist.convert.official_folder import TRACKERS, part_name
from glm_dist.convert.spill import Spill
from glm_dist.errors import CheckpointError, ConfigError


def check_parts(model: ModelConfig, parts: int) -> None:
    """Refuse a number of model-parallel ranks that does not divide the model.

    Raises:
        ConfigError: It does not divide the heads.
    """
    if model.num_attention_heads % parts:
        fits = divisors(model.num_attention_heads)
        raise ConfigError(
            f"--model-parallel-size {parts} does not divide the {model.num_attention_heads} heads"
            " of the model.\n"
            f"  Choose {either(fits)}.",
            key="--model-parallel-size",
            value=parts,
            fix=f"--model-parallel-size {fits[-1]}",
        )


def write_official(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    model: ModelConfig,
    padded_vocab_size: int,
    step: int,
    parts: int,
    dtype: torch.dtype,
) -> Path:
    """Write trackers and one file for each model-parallel rank.

    Args:
        folder: Exists and is empty.
        tensors: Whole parameters by official name.
        model: Architecture, of the official form.
        padded_vocab_size: Rows of the word table, V.
        step: Iteration that the files name.
        parts: Model-parallel ranks.
        dtype: Of the stored weights.

    Returns:
        The folder of the parts.

    Raises:
        CheckpointError: A weight is beyond the range of the dtype, or a file could not be written.
    """
    tag = folder / str(step)
    tag.mkdir()
    spill = Spill(folder)
    parameters = official_parameters(model, padded_vocab_size)
    for rank in range(parts):
        module = {
            _stored_name(each.name, model): spill.keep(
                _stored(each, tensors[each.name], rank, parts, dtype)
            )
            for each in parameters
        }
        _save(tag / part_name(rank), module, step=step, parts=parts)
    for name in TRACKERS:
        (folder / name).write_text(str(step), encoding="utf-8")
    return tag


def _stored_name(name: str, model: ModelConfig) -> str:
    is_inner = model.num_classes > 0 and name not in CLASSIFIER
    return CLASSIFIER_PREFIX + name if is_inner else name


def _stored(
    parameter: OfficialParameter, whole: torch.Tensor, rank: int, parts: int, dtype: torch.dtype
) -> torch.Tensor:
    return cast(parameter.name, parameter.part(whole, rank, parts), dtype)


def _save(path: Path, module: dict[str, torch.Tensor], *, step: int, parts: int) -> None:
    """Write one rank's file with the keys that the official code and DeepSpeed look for."""
    content = {
        "module": module,
        "iteration": step,
        "global_steps": step,
        "skipped_steps": 0,
        "global_samples": 0,
        "dp_world_size": 1,
        "mp_world_size": parts,
        "optimizer": None,
        "lr_scheduler": None,
    }
    try:
        torch.save(content, str(path))
    except RuntimeError as error:  # all that torch's writer says of a full disk
        raise CheckpointError(
            f"{path.name} could not be written to its end, as on a full disk.\n"
            "  Free some space, or choose another TARGET.",
            key="TARGET",
            value=str(error),
            fix="free some space",
        ) from error
