"""Records of a checkpoint: its files, its tensors, and the boxes that the tensors are stored in.

Plain data without torch; ``fields.py`` checks what was read from a disk, ``manifest.py`` reads it.
"""

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

from glm_dist.config.schema import RunConfig

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

FORMAT_VERSION = 2
"""Version 1 kept the boxes in ``.metadata``, a pickle; ``version_1.py`` still reads it."""

WEIGHTS = "model."
"""Prefix of the weights in a checkpoint; the optimizer's moments have other prefixes."""

ITEM_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}
"""Bytes of an element, by the dtypes that a checkpoint may hold."""


@dataclass(frozen=True)
class FileRecord:
    """Size and hash of one file."""

    num_bytes: int
    sha256: str
    """Hexadecimal digest."""


@dataclass(frozen=True)
class BoxRecord:
    """One axis-aligned part of a tensor, and the bytes of a file that hold it."""

    offsets: tuple[int, ...]
    """First index along each dim of the global tensor."""
    sizes: tuple[int, ...]
    file: str
    start: int
    """First byte in the file."""
    num_bytes: int
    """Bytes in the file: those of a ``torch.save``, more than the elements take."""


@dataclass(frozen=True)
class TensorRecord:
    """One global tensor."""

    shape: tuple[int, ...]
    dtype: str
    """Name without the prefix ``torch.``."""
    boxes: tuple[BoxRecord, ...] = ()
    """Disjoint, and together the whole tensor."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Manifest:
    """Metadata of a checkpoint, readable without its tensors."""

    step: int
    """Optimizer steps done, skipped fp16 updates included."""
    layout: dict[str, int]
    """Sizes of the parallel axes that wrote it, for information: any layout can read it."""
    extra: dict[str, Json]
    """State of the run that is the same on every rank (rows consumed, data fingerprint, ...)."""
    tensors: dict[str, TensorRecord]
    files: dict[str, FileRecord]
    """All files except the manifest, by name; there are no folders inside a checkpoint."""
    format_version: int = FORMAT_VERSION
    config_version: int = RunConfig.config_version
    """Version of the configuration, for information: tensors are read by name and shape."""
    written_by: str = (
        f"python {platform.python_version()}, torch {importlib.metadata.version('torch')}"
    )

    @property
    def has_optimizer(self) -> bool:
        """True if there is more than weights, so that training can go on from it."""
        return any(not name.startswith(WEIGHTS) for name in self.tensors)

    def to_json(self) -> str:
        """Return the text of the manifest file, a line for each tensor and file.

        Raises:
            TypeError: ``extra`` holds a value that JSON cannot represent.
            ValueError: ``extra`` holds a NaN or an infinity.
        """
        content: dict[str, object] = {
            "step": self.step,
            "layout": self.layout,
            "extra": self.extra,
            "tensors": {name: _tensor(record) for name, record in self.tensors.items()},
            "files": {name: asdict(record) for name, record in self.files.items()},
            "format_version": self.format_version,
            "config_version": self.config_version,
            "written_by": self.written_by,
        }
        lines = [
            f' "{key}": {_lines(value) if key in ("tensors", "files") else _compact(value)}'
            for key, value in sorted({"checksum": checksum(content), **content}.items())
        ]
        return "{\n" + ",\n".join(lines) + "\n}"


def checksum(content: Mapping[str, object]) -> str:
    """Hash a canonical form, so that the checksum survives a round trip through JSON.

    Raises:
        ValueError: It holds a NaN or an infinity.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor(record: TensorRecord) -> dict[str, object]:
    boxes = [(b.offsets, b.sizes, b.file, b.start, b.num_bytes) for b in record.boxes]
    return {"shape": record.shape, "dtype": record.dtype, "boxes": boxes}


def _lines(values: object) -> str:
    assert isinstance(values, dict)
    entries = [f"  {json.dumps(name)}: {_compact(value)}" for name, value in sorted(values.items())]
    return "{\n" + ",\n".join(entries) + "\n }" if entries else "{}"


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
