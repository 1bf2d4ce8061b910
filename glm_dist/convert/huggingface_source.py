"""Hugging Face folders as a source of weights, and what their export needs beyond weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from glm_dist.config.schema import CorruptionConfig, PretrainingTask
from glm_dist.convert.configuration import complete_configuration
from glm_dist.convert.huggingface import HuggingFaceSource, read_huggingface
from glm_dist.convert.huggingface_tokenizer import shares_mask
from glm_dist.convert.official import WORD_TABLE
from glm_dist.convert.source import Source, Tensors
from glm_dist.data.tokenizer.stored import TOKENIZER_FOLDER
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.errors import ConfigError
from glm_dist.files import is_dir

SIZES = (
    "num_layers",
    "hidden_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_classes",
)
VALUES = ("hidden_dropout", "attention_dropout", "layernorm_epsilon", "init_std")


def huggingface_source(folder: Path) -> Source:
    """Open a Hugging Face folder.

    Raises:
        GlmDistError: As ``read_huggingface``.
    """
    found = read_huggingface(folder)
    return Source(
        title=f"Hugging Face folder {folder}",
        model=found.model,
        sizes={f"model.{name}": getattr(found.model, name) for name in SIZES},
        padded_vocab_size=found.padded_vocab_size,
        tensors=Tensors(dict.fromkeys(found.tensors), found.tensors.__getitem__),
        dtype=found.tensors[WORD_TABLE].dtype,
        step=0,
        ignored=found.ignored,
        origin={"huggingface": str(folder.resolve())},
        overrides=tuple(_overrides(found)),
    )


def _overrides(found: HuggingFaceSource) -> list[str]:
    """Values of config.json, and the tokenizer, as overrides."""
    values = [f"model.{name}={getattr(found.model, name)}" for name in VALUES]
    if found.tokenizer is not None:
        spec = found.tokenizer.spec
        path = str(Path(spec.path).absolute()).replace("\\", "\\\\").replace("'", "\\'")
        values += [
            f"tokenizer.kind={spec.kind.value}",
            f"tokenizer.path='{path}'",
            f"tokenizer.task_masks={str(spec.task_masks).lower()}",
            f"tokenizer.fixed_task_masks={str(spec.fixed_task_masks).lower()}",
            f"tokenizer.sentinel_pairs={spec.sentinel_pairs}",
        ]
    return values


def exported_tokenizer(
    source: Source, place: Path, overrides: Sequence[str], *, config_dir: Path | None
) -> TokenizerSpec | None:
    """Find the tokenizer of weights that are exported; None if none was named.

    Args:
        source: Weights.
        place: Folder of the source.
        overrides: As typed.
        config_dir: See ``complete_configuration``.

    Raises:
        GlmDistError: The tokenizer that was named does not fit.
        ConfigError: The run was trained with inputs that exported code does not build.
    """
    if source.config is not None:
        _check_layout(source.config.corruption)
        spec = TokenizerSpec.of(source.config.tokenizer)
        stored = place / TOKENIZER_FOLDER
        return replace(spec, path=str(stored)) if is_dir(stored) else spec
    if not any(text.startswith(("tokenizer", "experiment")) for text in overrides):
        return None
    config = complete_configuration(source, overrides, target=place, config_dir=config_dir)
    return TokenizerSpec.of(config.tokenizer)


def _check_layout(corruption: CorruptionConfig) -> None:
    """Refuse a run whose blanks the exported code would lay out otherwise than in training."""
    needed: dict[str, tuple[object, object]] = {
        "task": (corruption.task, PretrainingTask.blank_infilling),
        "sentinels": (corruption.sentinels, False),
        "no_block_positions": (corruption.no_block_positions, False),
    }
    for name, (value, wanted) in needed.items():
        if value == wanted:
            continue
        found, only = (str(getattr(each, "name", each)).lower() for each in (value, wanted))
        raise ConfigError(
            f"The run was trained with corruption.{name}={found}; the code of Hugging Face folders"
            f" builds inputs for {name}={only} only.\n"
            "  Read the run with glm_dist, or export its weights with --to official.",
            key=f"corruption.{name}",
            value=found,
            fix="--to official",
        )


def with_own_mask_row(
    tokenizer: TokenizerSpec | None, name: str, tensor: torch.Tensor
) -> torch.Tensor:
    """Return a parameter as its export has it: [gMASK] of GLM-10B-Chinese gets a row of its own."""
    if name != WORD_TABLE or tokenizer is None or not shares_mask(tokenizer):
        return tensor
    row = open_tokenizer(tokenizer).special.eop
    own = open_tokenizer(replace(tokenizer, fixed_task_masks=True)).special.gmask
    changed = tensor.clone()
    changed[own] = changed[row]
    return changed
