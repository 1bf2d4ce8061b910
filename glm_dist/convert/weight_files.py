"""Weight files of a model folder, read tensor by tensor, without running anything in them.

safetensors and torch's .bin, in one file or in shards, with an index or without. Reading a folder
looks at names and shapes only; a tensor is read when it is asked for.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from glm_dist.convert.restricted import load_restricted
from glm_dist.errors import CheckpointError
from glm_dist.files import is_file

SHARD = re.compile(r"(?:model|pytorch_model)-(\d+)-of-(\d+)\.(?:safetensors|bin)")
CUT_OFF = "it is damaged or cut off"


class Form(NamedTuple):
    """Shape and type of a tensor, known before it is read."""

    shape: tuple[int, ...]
    dtype: str
    """Such as float16."""


class _File(Protocol):
    path: Path
    forms: dict[str, Form]

    def read(self, name: str) -> torch.Tensor: ...


class WeightFiles(Mapping[str, torch.Tensor]):
    """Tensors of several files by name, read on demand."""

    def __init__(self, files: Mapping[str, _File]) -> None:
        """Keep the file of each name."""
        self._files = files

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read a tensor."""
        return self._files[name].read(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._files)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._files)

    def form(self, name: str) -> Form:
        """Return a tensor's shape and type without reading it."""
        return self._files[name].forms[name]

    def file(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._files[name].path


def open_weight_files(folder: Path) -> WeightFiles:
    """Find the weights of a folder; safetensors come before .bin, as in transformers.

    Args:
        folder: Of a model.

    Raises:
        CheckpointError: There are none, a shard is missing, or a file is damaged or holds objects
            that are no tensors.
    """
    owners: dict[str, _File] = {}
    paths, listed = _find(folder)
    for path in paths:
        file: _File = _Safetensors(path) if path.suffix == ".safetensors" else _TorchFile(path)
        for name in file.forms:
            if name in owners:
                raise _damaged(path, f"{name} is in {owners[name].path.name}, too")
            owners[name] = file
    for name, file_name in listed.items():
        if name not in owners or owners[name].path.name != file_name:
            raise _damaged(folder / file_name, f"the index expects {name} in it")
    return WeightFiles(owners)


def _find(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Weight files of a folder, and the file of each tensor where an index lists them."""
    for stem, end in (("model", "safetensors"), ("pytorch_model", "bin")):
        if is_file(folder / f"{stem}.{end}"):
            return [folder / f"{stem}.{end}"], {}
        index = folder / f"{stem}.{end}.index.json"
        if is_file(index):
            listed = _read_index(index)
            return [_present(folder / name) for name in sorted(set(listed.values()))], listed
        shards = sorted(path for path in folder.glob(f"{stem}-*.{end}") if SHARD.match(path.name))
        if shards:
            return _all_shards(shards), {}
    raise CheckpointError(
        f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin, nor shards of"
        " them.\n"
        "  Name the folder that has them, with its config.json.",
        key=str(folder),
    )


def _read_index(index: Path) -> dict[str, str]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise _damaged(index, "it has no weight_map")
    for name, file in listed.items():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise _damaged(index, f"weight_map names {file!r} for {name}, which is no shard")
    return listed


def _all_shards(shards: list[Path]) -> list[Path]:
    """The shards, if they are all of one set."""
    numbers = [SHARD.fullmatch(path.name) for path in shards]
    counts = {match[2] for match in numbers if match}
    if len(counts) != 1:
        raise _damaged(shards[0].parent, f"shards of several sets: of {' and of '.join(counts)}")
    (count,) = counts
    first = shards[0].name
    stem, suffix = first.split("-")[0], shards[0].suffix
    width = len(count)
    return [
        _present(shards[0].with_name(f"{stem}-{number:0{width}}-of-{count}{suffix}"))
        for number in range(1, int(count) + 1)
    ]


def _present(path: Path) -> Path:
    if not is_file(path):
        raise CheckpointError(
            f"{path} is missing, so the weights are incomplete.\n  Fetch the folder again.",
            key=str(path),
            fix="fetch the folder again",
        )
    return path


class _Safetensors:
    """A safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}
                self.forms = {
                    name: Form(tuple(part.get_shape()), _dtype(part.get_dtype()))
                    for name, part in slices.items()
                }
        except (SafetensorError, OSError) as error:
            raise _damaged(path, CUT_OFF) from error

    def read(self, name: str) -> torch.Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(self.path, CUT_OFF) from error
        return tensor


def _dtype(name: str) -> str:
    """Torch's name of a type of safetensors, for those that weights have."""
    known = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
    return known.get(name, name)


class _TorchFile:
    """A file of torch.save, mapped into memory; tensors only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        state = load_restricted(path)
        if not isinstance(state, dict):
            raise _damaged(path, f"it holds a {type(state).__name__}, not tensors by name")
        self._state = state
        self.forms = {
            name: Form(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in self._state.items()
            if isinstance(tensor, torch.Tensor)
        }

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._state[name]
        return tensor


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: File of a model folder.

    Raises:
        CheckpointError: It is missing, or is something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        problem = "it cannot be read" if isinstance(error, OSError) else "it is no JSON"
        missing = isinstance(error, FileNotFoundError)
        raise _damaged(path, "it is missing" if missing else problem) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no JSON object")
    return content


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be used: {problem}.\n  Fetch the folder again, or name another one.",
        key=str(path),
        value=problem,
        fix="fetch the folder again",
    )
