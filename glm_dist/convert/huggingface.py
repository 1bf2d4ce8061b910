"""Hugging Face folders of GLM, read under the names of the official parameters.

Reading runs no code of the folder.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from glm_dist.config.schema import ModelConfig
from glm_dist.convert.huggingface_config import CONFIG_FILE, PREFIX, read_config, sizes_of
from glm_dist.convert.huggingface_export import write_huggingface as write_huggingface
from glm_dist.convert.huggingface_tokenizer import FoundTokenizer, find_tokenizer
from glm_dist.convert.official import official_shapes
from glm_dist.convert.weight_files import WeightFiles, open_weight_files
from glm_dist.errors import CheckpointError
from glm_dist.files import is_dir

DTYPES = ("float16", "bfloat16", "float32", "float64")
LAYER = re.compile(r"transformer\.layers\.(\d+)\.")


class OfficialTensors(Mapping[str, torch.Tensor]):
    """Weights of a folder by official name; each is read when it is asked for."""

    def __init__(self, files: WeightFiles, stored: Mapping[str, str]) -> None:
        """Keep the name in the files of each official name."""
        self._files = files
        self._stored = stored

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read a tensor."""
        return self._files[self._stored[name]]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of the official file."""
        return iter(self._stored)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._stored)


@dataclass(frozen=True)
class HuggingFaceSource:
    """A Hugging Face GLM folder."""

    folder: Path
    config: Mapping[str, object]
    """Content of config.json."""
    model: ModelConfig
    """Its sizes."""
    padded_vocab_size: int
    """Rows of the word table, V."""
    tensors: Mapping[str, torch.Tensor]
    """Whole parameters by official name, read on demand."""
    ignored: tuple[str, ...]
    """Names in the files that are no parameters of GLM, such as heads of other tasks."""
    tokenizer: FoundTokenizer | None
    """None: the folder has no vocabulary."""


def read_huggingface(folder: str | Path) -> HuggingFaceSource:
    """Open a Hugging Face GLM folder; its weights are read on demand, and none of its code is run.

    Args:
        folder: Has config.json and safetensors or .bin files, whole or in shards.

    Raises:
        CheckpointError: Files are missing or damaged, or parameters are missing or of other shapes
            than config.json says.
        ConfigError: A size is beyond what our models allow.
        DataError: The tokenizer does not fit.
    """
    place = Path(folder)
    if not is_dir(place):
        raise CheckpointError(
            f"{place} is no folder; a Hugging Face model is one, with config.json and weights.\n"
            "  Name the folder that was downloaded.",
            key=str(place),
        )
    config = read_config(place)
    sizes = sizes_of(config, place / CONFIG_FILE)
    files = open_weight_files(place)
    stored, ignored = _match_names(files, sizes.model, sizes.padded_vocab_size)
    return HuggingFaceSource(
        folder=place,
        config=config,
        model=sizes.model,
        padded_vocab_size=sizes.padded_vocab_size,
        tensors=OfficialTensors(files, stored),
        ignored=ignored,
        tokenizer=find_tokenizer(place, sizes.padded_vocab_size),
    )


def _match_names(
    files: WeightFiles, model: ModelConfig, padded_vocab_size: int
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Stored name of each official name, and the names that are none."""
    by_name: dict[str, str] = {}
    for stored in files:
        name = stored.removeprefix(PREFIX)
        if name in by_name:
            raise _wrong(files.file(stored), stored, f"is there with {PREFIX} and without")
        by_name[name] = stored
    shapes = official_shapes(model, padded_vocab_size)
    missing = [name for name in shapes if name not in by_name]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _wrong(files.file(next(iter(files))), missing[0] + more, "is missing")
    for name, shape in shapes.items():
        found = files.form(by_name[name])
        if found.shape != shape:
            problem = f"has the shape {list(found.shape)}, by {CONFIG_FILE} it is {list(shape)}"
            raise _wrong(files.file(by_name[name]), by_name[name], problem)
        if found.dtype not in DTYPES:
            problem = f"has values of type {found.dtype}; weights are {', '.join(DTYPES)}"
            raise _wrong(files.file(by_name[name]), by_name[name], problem)
    ignored = [stored for name, stored in by_name.items() if name not in shapes]
    for stored in ignored:
        layer = LAYER.match(stored.removeprefix(PREFIX))
        if layer and int(layer[1]) >= model.num_layers:
            problem = f"is of a layer beyond num_layers={model.num_layers} of {CONFIG_FILE}"
            raise _wrong(files.file(stored), stored, problem)
    return {name: by_name[name] for name in shapes}, tuple(ignored)


def _wrong(file: Path, name: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{name} in {file} {problem}.\n"
        f"  Check that {CONFIG_FILE} and the weights belong to one GLM.",
        key=name,
        value=problem,
    )
