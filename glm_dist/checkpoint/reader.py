"""Reading of tensors from the boxes that a manifest lists; no pickle decides where anything is."""

import io
import os
import uuid
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.futures import Future

from glm_dist.checkpoint.finite import non_finite, not_finite
from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.manifest import damage_error, file_problem
from glm_dist.checkpoint.only_tensors import only_allowed
from glm_dist.checkpoint.records import Manifest, TensorRecord
from glm_dist.errors import CheckpointError
from glm_dist.parallel.errors import Ranks


def read_tensors(
    folder: Path, manifest: Manifest, fragments: Mapping[str, Fragment], ranks: Ranks
) -> None:
    """Fill fragments in place from the saved boxes of any layout; collective.

    Args:
        folder: A checkpoint whose names and shapes were compared with the fragments'.
        manifest: Its manifest, with boxes.
        fragments: Fragments by global name; ranks may request different ones.
        ranks: Participating processes.

    Raises:
        CheckpointException: On every rank, torch's account of which rank failed and why.
    """
    with quiet_about_one_process(is_alone=not ranks.is_joined):
        load(
            dict(fragments),
            storage_reader=_Reader(folder, manifest),
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=ranks.group,
            no_dist=not ranks.is_joined,
        )


class TensorReader:
    """Whole tensors of one checkpoint, read one by one in this process alone."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open a checkpoint.

        Args:
            folder: Its files have been verified.
            manifest: Its manifest, with boxes.
        """
        self._reader = _Reader(folder, manifest)

    def read(self, name: str, record: TensorRecord) -> torch.Tensor:
        """Read a tensor as it was saved.

        Args:
            name: In the checkpoint.
            record: Its record in the manifest.

        Raises:
            CheckpointError: A file holds something else than its boxes, or a value is not finite.
        """
        tensor = torch.empty(record.shape, dtype=getattr(torch, record.dtype))
        try:
            with quiet_about_one_process(is_alone=True):
                load({name: tensor}, storage_reader=self._reader, no_dist=True)
        except CheckpointException as error:
            for wrapped, _ in error.failures.values():
                if isinstance(wrapped, CheckpointError):
                    raise wrapped from None
            raise
        if non_finite({name: [tensor]}):
            raise not_finite(self._reader.folder, name)
        return tensor


class _Reader(FileSystemReader):
    """torch's reader, with the boxes of a manifest instead of torch's pickle of them."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder)
        self.folder = folder
        self._manifest = manifest
        self._metadata: Metadata | None = None
        self._sizes = {
            MetadataIndex(name, box.offsets): box.sizes
            for name, record in manifest.tensors.items()
            for box in record.boxes
        }

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = _as_metadata(self._manifest)
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for file, items in by_file.items():
            path = self.folder / file
            if (problem := file_problem(path)) is not None:
                raise damage_error(self.folder, [f"{file} {problem}"])
            with path.open("rb") as stream:
                for item in items:
                    box = self._box(stream, item)
                    for dim, (start, length) in enumerate(
                        zip(item.storage_offsets, item.lengths, strict=True)
                    ):
                        box = box.narrow(dim, start, length)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(box)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _box(self, stream: IO[bytes], item: ReadItem) -> torch.Tensor:
        """Read one box whole.

        Raises:
            DamagedCheckpointError: The file holds something else.
        """
        index = item.storage_index
        record = self._manifest.tensors[index.fqn]
        problem = f"{Path(stream.name).name} holds something else than a box of {index.fqn}"
        place = self.storage_data[index]
        try:
            _check_archive(stream, place)
            view = self._slice_file(stream, place)
            with only_allowed(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about what is an error below
                box = torch.load(view, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # damaged or hostile bytes may raise anything
            raise damage_error(self.folder, [problem]) from error
        is_right = isinstance(box, torch.Tensor) and tuple(box.shape) == self._sizes[index]
        if not is_right or str(box.dtype) != f"torch.{record.dtype}":
            raise damage_error(self.folder, [problem])
        return cast(torch.Tensor, box)


class _Section(io.RawIOBase):
    """Bytes of an open file between two positions.

    torch's view of them cannot seek backwards from its end.
    """

    def __init__(self, stream: IO[bytes], start: int, length: int) -> None:
        self._stream = stream
        self._start = start
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if origin + offset < 0:
            raise ValueError("a position before the section")
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        left = max(self._length - self._position, 0)
        self._stream.seek(self._start + self._position)
        content = self._stream.read(left if size < 0 else min(size, left))
        self._position += len(content)
        return content


def _check_archive(stream: IO[bytes], place: _StorageInfo) -> None:
    """Refuse what is no archive of ``torch.save``, and one that would be larger when unpacked.

    Raises:
        zipfile.BadZipFile: It is one of these.
    """
    section = _Section(stream, place.offset, place.length)
    with zipfile.ZipFile(cast(IO[bytes], section)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > place.length:
            raise zipfile.BadZipFile("it is compressed")


def _as_metadata(manifest: Manifest) -> Metadata:
    """Describe the boxes as torch's planner expects them."""
    tensors, places = {}, {}
    for name, record in manifest.tensors.items():
        chunks = []
        for number, box in enumerate(record.boxes):
            offsets = torch.Size(box.offsets)
            chunks.append(ChunkStorageMetadata(offsets, torch.Size(box.sizes)))
            place = _StorageInfo(box.file, box.start, box.num_bytes)
            places[MetadataIndex(name, offsets, number)] = place
        properties = TensorProperties(dtype=getattr(torch, record.dtype))
        tensors[name] = TensorStorageMetadata(properties, torch.Size(record.shape), chunks)
    meta = StorageMeta(load_id=str(uuid.uuid4()))
    return Metadata(dict(tensors), storage_data=places, storage_meta=meta)


@contextmanager
def quiet_about_one_process(*, is_alone: bool) -> Iterator[None]:
    """Silence torch's warning about a missing process group: generation runs without one."""
    if not is_alone:
        # catch_warnings changes the whole process, and a save may run in a thread of a job.
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
