"""Hugging Face folders of GLM, written for transformers with trust_remote_code=True.

A folder has code with it, from ``hub/``: the code on the Hub works with old releases of
transformers only, and computes another GELU than the one that GLMs are trained with.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from json import dumps
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from glm_dist.config.schema import Dtype, ModelConfig, pad_vocabulary
from glm_dist.convert.huggingface_config import CONFIG_FILE, PREFIX, TORCH_NAMES, config_of
from glm_dist.convert.huggingface_tokenizer import (
    check_room,
    shares_mask,
    tokenizer_content,
)
from glm_dist.convert.official import check_official_form, official_shapes
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.files import FileError, ensure_writable, exists, fsync_folder, is_dir

WORD_TABLE = "word_embeddings.weight"
MAX_SHARD_BYTES = 5_000_000_000
"""Largest shard by default, as of transformers."""
GENERATION_FILE = "generation_config.json"
CODE = ("configuration_glm.py", "modeling_glm.py", "tokenization_glm.py", "inputs_glm.py")


def write_huggingface(
    folder: str | Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    model: ModelConfig,
    tokenizer: TokenizerSpec | None,
    dtype: Dtype = Dtype.fp16,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """Write a folder that transformers opens with trust_remote_code=True.

    One shard at a time is in memory. The folder appears when it is complete.

    Args:
        folder: A new folder, or an empty one.
        tensors: Whole parameters by official name; others are left out.
        model: Architecture.
        tokenizer: The model's; None: weights and code only. Where [gMASK] shares the id of the end
            of a piece (GLM-10B-Chinese) it gets its own, as on the Hub: the row is copied.
        dtype: Of the stored weights.
        max_shard_bytes: Largest weight file, unless a single tensor is larger.

    Returns:
        The files written.

    Raises:
        ConfigError: There is no such form of the model.
        CheckpointError: Parameters are missing or of other shapes, or do not fit the dtype.
        DataError: The tokenizer does not fit, or its files are missing.
        FileError: The folder has files already, or cannot be written.
    """
    place = Path(folder)
    _check_new(place)
    source = _Source(tensors, model, dtype)
    documents: dict[str, Mapping[str, object]] = {}
    files = {name: Path(__file__).with_name("hub") / name for name in CODE}
    bad_token: int | None = None
    if tokenizer is not None:
        special = open_tokenizer(tokenizer).special
        if shares_mask(tokenizer):
            tokenizer = replace(tokenizer, fixed_task_masks=True)
            bad_token = open_tokenizer(tokenizer).special.gmask
            source.copied_row = (special.eop, bad_token)
        copies, more = tokenizer_content(tokenizer, max_position=model.max_position_embeddings)
        files |= copies
        documents |= more
        documents[GENERATION_FILE] = _generation_config(tokenizer, source.num_rows, bad_token)
    documents[CONFIG_FILE] = config_of(model, source.num_rows, dtype=dtype, bad_token=bad_token)
    with _whole_folder(place) as beside:
        for name, file in files.items():
            shutil.copyfile(file, beside / name)
        index = _write_weights(beside, source, max_shard_bytes)
        for name, content in (documents | index).items():
            text = dumps(content, indent=2, ensure_ascii=False) + "\n"
            (beside / name).write_text(text, encoding="utf-8")
    return sorted(place.iterdir())


def _check_rows(num_rows: int) -> None:
    """Refuse a word table that is not padded as every GLM's."""
    if num_rows != pad_vocabulary(num_rows):
        raise ConfigError(
            f"The word table has {num_rows} rows; official and Hugging Face GLMs have a multiple of"
            " 128.\n"
            f"  Pad it with rows of zeros to {pad_vocabulary(num_rows)}.",
            key=WORD_TABLE,
            value=num_rows,
        )


def _check_no_head(model: ModelConfig) -> None:
    """Refuse a classification head, which the folder's code does not have."""
    if model.num_classes > 0:
        raise ConfigError(
            f"The model has a classification head (model.num_classes={model.num_classes}), which"
            " the exported code for transformers cannot run.\n"
            "  Convert it with --to official, which keeps the head.",
            key="model.num_classes",
            value=model.num_classes,
            fix="--to official",
        )


@dataclass
class _Source:
    """Weights to export."""

    tensors: Mapping[str, torch.Tensor]
    model: ModelConfig
    dtype: Dtype
    copied_row: tuple[int, int] | None = None
    """Row of the word table, and the row that becomes equal to it."""

    def __post_init__(self) -> None:
        """Compare names with the architecture."""
        self.num_rows = self.tensors[WORD_TABLE].shape[0] if WORD_TABLE in self.tensors else 0
        check_official_form(self.model, any_epsilon=True)
        _check_no_head(self.model)
        _check_rows(self.num_rows)
        self.shapes = official_shapes(self.model, self.num_rows)
        missing = [name for name in self.shapes if name not in self.tensors]
        if missing:
            raise CheckpointError(
                f"The weights have no {missing[0]} (missing in all: {len(missing)}), so they are"
                f" not those of a GLM with {self.model.num_layers} layers.\n"
                "  Check model.num_layers and the weights.",
                key=missing[0],
                value=len(missing),
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Stored type."""
        found: torch.dtype = getattr(torch, TORCH_NAMES[self.dtype])
        return found

    def read(self, name: str) -> torch.Tensor:
        """A tensor as it is stored."""
        tensor = self.tensors[name]
        if tuple(tensor.shape) != self.shapes[name]:
            raise CheckpointError(
                f"{name} has the shape {list(tensor.shape)}; by the model's configuration it is"
                f" {list(self.shapes[name])}.\n"
                "  Check that configuration and weights belong together.",
                key=name,
                value=list(tensor.shape),
            )
        stored = tensor.detach().to(self.torch_dtype).contiguous()
        if not stored.isfinite().all() and tensor.isfinite().all():
            raise CheckpointError(
                f"{name} has values up to {float(tensor.abs().max()):.3g}, beyond the range of"
                f" {self.dtype.value}.\n"
                "  Export in bf16 or fp32.",
                key=name,
                value=self.dtype.value,
                fix="bf16",
            )
        if name == WORD_TABLE and self.copied_row is not None:
            row, copy = self.copied_row
            stored = stored.clone()
            stored[copy] = stored[row]
        return stored


def _generation_config(
    spec: TokenizerSpec, num_rows: int, bad_token: int | None
) -> dict[str, object]:
    """Stop where glm_dist stops, and write text only, as it does."""
    tokenizer = open_tokenizer(spec)
    check_room(tokenizer, num_rows)
    special = tokenizer.special
    stops = {special.eop, special.eos}
    never = {*_structure(special), *range(tokenizer.vocab_size, num_rows)} - stops
    config: dict[str, object] = {
        "eos_token_id": sorted(stops),
        "pad_token_id": special.pad,
        "suppress_tokens": sorted(never),
    }
    if bad_token is not None:
        config["bad_words_ids"] = [[bad_token]]
    return config


def _structure(special: SpecialTokens) -> set[int]:
    """Tokens that have no place in an answer."""
    first = special.first_sentinel
    return {
        *(special.cls, special.sep, special.unk, special.sop),
        *(special.mask, special.gmask, special.smask),
        *range(first, first + 2 * special.sentinel_pairs),
    }


def _write_weights(
    folder: Path, source: _Source, max_shard_bytes: int
) -> dict[str, Mapping[str, object]]:
    """Write shards; the index, by its name, if there are several."""
    item = source.torch_dtype.itemsize
    sizes = {name: item * prod(shape) for name, shape in source.shapes.items()}
    shards = _cut(sizes, max_shard_bytes)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [
            f"model-{number:05}-of-{len(shards):05}.safetensors"
            for number in range(1, len(shards) + 1)
        ]
    for file, shard in zip(names, shards, strict=True):
        content = {PREFIX + name: source.read(name) for name in shard}
        save_file(content, folder / file, metadata={"format": "pt"})
    if len(shards) == 1:
        return {}
    files = {
        PREFIX + name: file for file, shard in zip(names, shards, strict=True) for name in shard
    }
    metadata = {"total_size": sum(sizes.values())}
    return {"model.safetensors.index.json": {"metadata": metadata, "weight_map": files}}


def _cut(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Cut names into runs of at most so many bytes, or one name."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _check_new(folder: Path) -> None:
    if exists(folder) and not (is_dir(folder) and not any(folder.iterdir())):
        raise FileError(
            f"{folder} exists and is not empty; an export never replaces files.\n"
            "  Name a new folder, or remove this one.",
            key=str(folder),
            fix="name a new folder",
        )
    ensure_writable(folder.parent, key="output folder", create=True)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Write a folder beside its name, and give it the name when it is whole."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    beside.mkdir()
    try:
        yield beside
        _sync(sorted(beside.iterdir()))
        fsync_folder(beside)
        os.replace(beside, folder)
        fsync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"Cannot write {folder}: {error}.\n  Free some space, or choose another folder.",
            key=str(folder),
            value=str(error),
            fix="choose another folder",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync(files: Sequence[Path]) -> None:
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
