"""Reading of tensors from the boxes that a manifest lists; no pickle decides where anything is."""

import pickle
import uuid
import warnings
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
        sizes = next(box.sizes for box in record.boxes if box.offsets == tuple(index.offset or ()))
        problem = f"{Path(stream.name).name} holds something else than a box of {index.fqn}"
        view = self._slice_file(stream, self.storage_data[index])
        try:
            with only_allowed(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about what is an error below
                box = torch.load(cast(IO[bytes], view), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError) as error:
            raise damage_error(self.folder, [problem]) from error
        is_right = isinstance(box, torch.Tensor) and tuple(box.shape) == sizes
        if not is_right or str(box.dtype) != f"torch.{record.dtype}":
            raise damage_error(self.folder, [problem])
        return cast(torch.Tensor, box)


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
