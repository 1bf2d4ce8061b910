"""Boxes of checkpoints of format version 1, which kept them in ``.metadata``, a pickle of torch.

A pickle can name any function to be called while it is read. This reader knows the classes of
torch's table of boxes, which hold data and do nothing, and refuses every other name before anything
is looked up. A save writes the current version, so a resumed run leaves this format behind.
"""

import io
import pickle
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata

from glm_dist.checkpoint.fields import check_boxes
from glm_dist.checkpoint.manifest import damage_error, file_problem
from glm_dist.checkpoint.records import ITEM_BYTES, BoxRecord, Manifest, TensorRecord

TABLE_NAME = ".metadata"

_METADATA = "torch.distributed.checkpoint.metadata"

_ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (_METADATA, kind.__name__): kind
        for kind in (
            metadata.ChunkStorageMetadata,
            metadata.Metadata,
            metadata.MetadataIndex,
            metadata.StorageMeta,
            metadata.TensorProperties,
            metadata.TensorStorageMetadata,
            metadata._MEM_FORMAT_ENCODING,
        )
    },
    **{("torch", name): getattr(torch, name) for name in ITEM_BYTES},
    ("torch", "Size"): torch.Size,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): filesystem._StorageInfo,
    ("torch.serialization", "_get_layout"): str,  # of its name; nothing reads it
    ("pathlib", "PosixPath"): PurePosixPath,  # where the checkpoint was written; nothing reads it
    ("pathlib._local", "PosixPath"): PurePosixPath,
}


class _ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names something that is no part of a table of boxes."""


# The pickle module's reader in C reserves memory for counts that a forged file only claims.
class _TableUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _ForbiddenNameError(f"{module}.{name}") from None


def with_boxes(folder: Path, manifest: Manifest) -> Manifest:
    """Add the boxes that a checkpoint of version 1 keeps in a pickle; others are unchanged.

    Args:
        folder: A checkpoint; the sizes of its files have been compared.
        manifest: Its manifest.

    Raises:
        DamagedCheckpointError: The pickle is damaged, names something to be run, or contradicts
            the manifest.
    """
    if manifest.format_version > 1:
        return manifest
    try:
        if TABLE_NAME not in manifest.files or (problem := file_problem(folder / TABLE_NAME)):
            raise damage_error(folder, [f"{TABLE_NAME} is missing or {problem}"])
        table = _TableUnpickler(io.BytesIO((folder / TABLE_NAME).read_bytes())).load()
        tensors = {
            name: replace(record, boxes=_boxes(table, name, record))
            for name, record in manifest.tensors.items()
        }
        complete = replace(manifest, tensors=tensors)
        check_boxes(complete)
    except _ForbiddenNameError as error:
        reason = f"{TABLE_NAME} names {error}, which no table of boxes holds; nothing of it was run"
        raise damage_error(folder, [reason]) from None
    except ValueError as error:
        raise damage_error(folder, [f"{TABLE_NAME} with {error}"]) from error
    # Forged or damaged bytes may raise anything; what the system says of the file is passed on.
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
    ) as error:
        reason = f"{TABLE_NAME} is no table of boxes ({type(error).__name__})"
        raise damage_error(folder, [reason]) from error
    return complete


def _boxes(table: Any, name: str, record: TensorRecord) -> tuple[BoxRecord, ...]:
    saved = table.state_dict_metadata[name]
    dtype = str(saved.properties.dtype).removeprefix("torch.")
    if tuple(saved.size) != record.shape or dtype != record.dtype:
        raise ValueError(f"{name} as in no manifest")
    boxes = []
    for chunk in saved.chunks:
        place = table.storage_data[metadata.MetadataIndex(name, chunk.offsets)]
        if place.transform_descriptors if hasattr(place, "transform_descriptors") else False:
            raise ValueError(f"{name} in a form that no run has written")
        numbers = (*chunk.offsets, *chunk.sizes, place.offset, place.length)
        if not all(isinstance(each, int) and each >= 0 for each in numbers):
            raise ValueError(f"a box of {name} without offsets and sizes")
        boxes.append(
            BoxRecord(
                tuple(chunk.offsets),
                tuple(chunk.sizes),
                str(place.relative_path),
                place.offset,
                place.length,
            )
        )
    return tuple(boxes)
