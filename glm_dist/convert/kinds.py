"""Kinds of model folders that can be converted, by the names in them. No torch."""

from enum import Enum
from pathlib import Path

from glm_dist.checkpoint.folders import MANIFEST_NAME
from glm_dist.convert.official_folder import holds_official
from glm_dist.errors import CheckpointError
from glm_dist.files import exists, is_dir, is_file
from glm_dist.observe.run_folder import CHECKPOINTS, CONFIG_FILE


class Kind(Enum):
    """Kind of a folder of weights."""

    ours = "ours"
    """A run folder, which every command reads."""
    official = "official"
    """A checkpoint of the official GLM code."""
    huggingface = "huggingface"
    """A model folder of transformers."""


def _step(checkpoint: Path) -> str:
    return checkpoint.name.rpartition("_")[2].lstrip("0") or "0"


def kind_of(source: Path) -> Kind:
    """Find out what a file or folder is.

    Raises:
        CheckpointError: It is none of the kinds, or is missing.
    """
    if is_file(source):
        return Kind.official
    if is_file(source / CONFIG_FILE) and is_dir(source / CHECKPOINTS):
        return Kind.ours
    if is_file(source / "config.json"):
        return Kind.huggingface
    if holds_official(source):
        return Kind.official
    if is_file(source / MANIFEST_NAME):
        raise CheckpointError(
            f"{source} is one checkpoint of a run, and its configuration lies in the run's folder."
            f"\n  Name the run: {source.parent.parent} --step {_step(source)}",
            key="SOURCE",
            value=str(source),
            fix=str(source.parent.parent),
        )
    problem = "holds none of the known kinds of weights" if exists(source) else "does not exist"
    raise CheckpointError(
        f"{source} {problem}: neither a run ({CONFIG_FILE} and {CHECKPOINTS}/), nor an official"
        " checkpoint (mp_rank_00_model_states.pt, or a folder with it), nor a Hugging Face folder"
        " (config.json).\n"
        "  Name one of these.",
        key="SOURCE",
        value=str(source),
    )
