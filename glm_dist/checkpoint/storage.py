"""Writing of tensors: torch.distributed.checkpoint with hashes, and a check of its plan.

torch's writer puts all boxes of a rank in one file and syncs it. This module adds the SHA-256 of
each file while it is written, an error for plans that would miss a part of a tensor, and returns
where each box lies, for the manifest.
"""

import dataclasses
import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.reader import quiet_about_one_process
from glm_dist.checkpoint.records import BoxRecord, FileRecord, TensorRecord
from glm_dist.files import write_atomically
from glm_dist.parallel.errors import Ranks, as_checkpoint_error

_MAX_LISTED = 10


def write_tensors(
    folder: Path, fragments: Mapping[str, Fragment], ranks: Ranks
) -> tuple[dict[str, FileRecord], dict[str, TensorRecord]]:
    """Write every rank's boxes; collective.

    Args:
        folder: Exists and is empty.
        fragments: Fragments by global name. Boxes held by several ranks are written once.
        ranks: Participating processes.

    Returns:
        Files this rank wrote, and all global tensors (the same on every rank).

    Raises:
        CheckpointException: On every rank, torch's account of which rank failed and why.
    """
    writer = _HashingWriter(folder, rank=ranks.rank)
    with quiet_about_one_process(is_alone=not ranks.is_joined):
        metadata = save(
            dict(fragments),
            storage_writer=writer,
            planner=_CompletePlanner(folder),
            process_group=ranks.group,
            no_dist=not ranks.is_joined,
        )
    tensors = {
        name: TensorRecord(
            shape=tuple(record.size),
            dtype=str(record.properties.dtype).removeprefix("torch."),
            boxes=tuple(_box(metadata, name, chunk) for chunk in record.chunks),
        )
        for name, record in metadata.state_dict_metadata.items()
        if isinstance(record, TensorStorageMetadata)
    }
    return writer.records, tensors


def _box(metadata: Metadata, name: str, chunk: ChunkStorageMetadata) -> BoxRecord:
    place = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
    return BoxRecord(
        offsets=tuple(chunk.offsets),
        sizes=tuple(chunk.sizes),
        file=place.relative_path,
        start=place.offset,
        num_bytes=place.length,
    )


def write_file(path: Path, content: bytes) -> FileRecord:
    """Write one file durably."""
    write_atomically(path, content)
    return FileRecord(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class _HashingStream(io.RawIOBase):
    """Stream with the methods that torch's writer calls, and a running SHA-256."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        self._stream.write(view)
        self._digest.update(view)
        self._num_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._num_bytes

    def flush(self) -> None:
        if not self._stream.closed:
            self._stream.flush()

    def fileno(self) -> int:
        self._stream.flush()
        return self._stream.fileno()

    def close(self) -> None:
        self._stream.close()
        super().close()

    def record(self) -> FileRecord:
        return FileRecord(num_bytes=self._num_bytes, sha256=self._digest.hexdigest())


class _HashingFileSystem(FileSystem):
    """torch's file system that records size and hash of each closed file."""

    def __init__(self) -> None:
        self.records: dict[str, FileRecord] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with Path(path).open(mode) as raw:
            stream = _HashingStream(cast(IO[bytes], raw))
            yield stream
            self.records[Path(path).name] = stream.record()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.records[Path(new_path).name] = self.records.pop(Path(path).name)


class _HashingWriter(FileSystemWriter):
    """torch's file writer over a hashing file system."""

    def __init__(self, folder: Path, *, rank: int) -> None:
        super().__init__(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
        self.hashing = _HashingFileSystem()
        self.fs = self.hashing
        self.group_rank = rank

    @property
    def records(self) -> dict[str, FileRecord]:
        """Files this rank has closed, by name."""
        return self.hashing.records

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with as_checkpoint_error(task="write tensors", path=str(self.path)):
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Note where every box lies; torch would write that down as a pickle."""
        metadata.storage_data = {
            result.index: result.storage_data for each in results for result in each
        }


class _CompletePlanner(DefaultSavePlanner):
    """Save planner that refuses a tensor if an element is missing or in two different boxes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.folder = folder

    def create_local_plan(self) -> SavePlan:
        """Plan this rank's boxes; add its names, since a tensor may have no box on any rank."""
        shapes = {name: tuple(fragment.shape) for name, fragment in self.state_dict.items()}
        return dataclasses.replace(super().create_local_plan(), planner_data=shapes)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        problems = _plan_problems(all_plans)
        if problems:
            more = len(problems) - _MAX_LISTED
            listed = "; ".join(problems[:_MAX_LISTED]) + (f"; and {more} more" * (more > 0))
            # This is a bug: the model describes its own layout inconsistently.
            raise RuntimeError(f"the ranks do not hold every element once: {listed}")
        return super().create_global_plan(all_plans)


def _plan_problems(plans: list[SavePlan]) -> list[str]:
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    boxes: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {}
    problems = []
    for plan in plans:
        for name, shape in plan.planner_data.items():
            if shapes.setdefault(name, shape) != shape:
                problems.append(f"{name} is {shapes[name]} on one rank, {shape} on another")
        for item in plan.items:
            assert item.tensor_data is not None
            name, chunk = item.index.fqn, item.tensor_data.chunk
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            dtype = item.tensor_data.properties.dtype
            if dtypes.setdefault(name, dtype) != dtype:
                problems.append(f"{name} is {dtypes[name]} on one rank, {dtype} on another")
            if boxes.setdefault(name, {}).setdefault(offsets, sizes) != sizes:
                problems.append(f"{name} is split in different ways at {offsets}")
    for name, shape in shapes.items():
        held = sum(math.prod(sizes) for sizes in boxes.get(name, {}).values())
        if held != math.prod(shape):
            problems.append(f"{name} has {math.prod(shape)} elements, ranks hold {held}")
    return problems
