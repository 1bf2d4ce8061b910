"""Fields of a manifest, checked before anything is opened or allocated because of them.

A checksum that holds shows that a manifest was not damaged, not who wrote it. So every type is
checked, every name must be that of a file in the checkpoint's own folder, and every tensor must
fit into the bytes of the files that hold it.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from glm_dist.checkpoint.records import (
    ITEM_BYTES,
    BoxRecord,
    FileRecord,
    Manifest,
    TensorRecord,
)

_REQUIRED = frozenset({"step", "layout", "extra", "tensors", "files", "format_version"})
_OPTIONAL = frozenset({"config_version", "written_by"})

_LARGEST = 2**63 - 1
_MOST_DIMS = 64
_SHA256 = re.compile(r"[0-9a-f]{64}")


def manifest_of(content: Mapping[str, Any]) -> Manifest:
    """Build a manifest from parsed JSON.

    Args:
        content: Fields of a manifest of version 1 or 2, without the checksum.

    Raises:
        ValueError: A field is missing, unknown or of a wrong type, or fields contradict each other.
            Its text follows "manifest.json with".
    """
    if missing := sorted(_REQUIRED - content.keys()):
        raise ValueError(f"no field {', '.join(missing)}")
    if unknown := sorted(content.keys() - _REQUIRED - _OPTIONAL):
        raise ValueError(f"unknown field {', '.join(map(repr, unknown))}")
    for field, kind in (("layout", dict), ("extra", dict), ("tensors", dict), ("files", dict)):
        if not isinstance(content[field], kind):
            raise ValueError(f"{field} that is no table")
    optional = {name: content[name] for name in _OPTIONAL & content.keys()}
    version = _count(content["format_version"], "format_version")
    manifest = Manifest(
        step=_count(content["step"], "step"),
        layout={name: _count(size, f"layout.{name}") for name, size in content["layout"].items()},
        extra=dict(content["extra"]),
        tensors={name: _tensor(name, value, version) for name, value in content["tensors"].items()},
        files={name: _file(name, value) for name, value in content["files"].items()},
        format_version=version,
        **optional,
    )
    if version > 1:
        check_boxes(manifest)
    elif (total := _total(manifest)) > (held := sum(f.num_bytes for f in manifest.files.values())):
        raise ValueError(f"tensors of {total} bytes in files of {held}")
    return manifest


def check_boxes(manifest: Manifest) -> None:
    """Check that the boxes make up their tensors and lie in their files.

    Raises:
        ValueError: See ``manifest_of``.
    """
    used: Counter[str] = Counter()
    for name, record in manifest.tensors.items():
        held = 0
        for box in record.boxes:
            _check_box(name, record, box, manifest.files.get(box.file))
            used[box.file] += box.num_bytes
            held += math.prod(box.sizes)
        if held != math.prod(record.shape):
            raise ValueError(f"{held} of the {math.prod(record.shape)} elements of {name}")
    for file, num_bytes in used.items():
        if num_bytes > manifest.files[file].num_bytes:
            raise ValueError(f"boxes of {num_bytes} bytes in {file}, which overlap")


def is_plain_name(name: str) -> bool:
    """Return True if a name is that of an entry of a folder, on every system."""
    return name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


def _check_box(name: str, record: TensorRecord, box: BoxRecord, file: FileRecord | None) -> None:
    if not len(box.offsets) == len(box.sizes) == len(record.shape) or any(
        start + size > whole
        for start, size, whole in zip(box.offsets, box.sizes, record.shape, strict=True)
    ):
        raise ValueError(f"a box that leaves {name}")
    if file is None or box.start + box.num_bytes > file.num_bytes:
        raise ValueError(f"a box of {name} outside of {box.file!r}")
    if math.prod(box.sizes) * ITEM_BYTES[record.dtype] > box.num_bytes:
        raise ValueError(f"a box of {name} that is larger than its {box.num_bytes} bytes")


def _total(manifest: Manifest) -> int:
    return sum(record.num_bytes for record in manifest.tensors.values())


def _tensor(name: str, value: object, version: int) -> TensorRecord:
    names = {"shape", "dtype", "boxes"} if version > 1 else {"shape", "dtype"}
    if not isinstance(value, dict) or value.keys() != names:
        raise ValueError(f"tensor {name} without {', '.join(sorted(names))}")
    dtype, boxes = value["dtype"], value.get("boxes", [])
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {name} of dtype {dtype!r}")
    if not isinstance(boxes, list):
        raise ValueError(f"tensor {name} without a list of boxes")
    shape = _counts(value["shape"], f"shape of {name}")
    return TensorRecord(shape=shape, dtype=dtype, boxes=tuple(_box(name, box) for box in boxes))


def _box(name: str, value: object) -> BoxRecord:
    if not isinstance(value, list) or len(value) != 5 or not isinstance(value[2], str):
        raise ValueError(f"a box of {name} that is no list of offsets, sizes, file, start, bytes")
    what = f"box of {name}"
    return BoxRecord(
        offsets=_counts(value[0], what),
        sizes=_counts(value[1], what),
        file=value[2],
        start=_count(value[3], what),
        num_bytes=_count(value[4], what),
    )


def _file(name: str, value: object) -> FileRecord:
    if not is_plain_name(name):
        raise ValueError(f"file {name!r}, which is no name inside the checkpoint's folder")
    if not isinstance(value, dict) or value.keys() != {"num_bytes", "sha256"}:
        raise ValueError(f"file {name} without num_bytes, sha256")
    digest = value["sha256"]
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"file {name} without a SHA-256")
    return FileRecord(num_bytes=_count(value["num_bytes"], f"num_bytes of {name}"), sha256=digest)


def _counts(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MOST_DIMS:
        raise ValueError(f"{what} that is no list of at most {_MOST_DIMS} numbers")
    return tuple(_count(each, what) for each in value)


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        raise ValueError(f"{what} that is no number from 0 to 2^63 - 1")
    return value
