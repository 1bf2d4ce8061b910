"""Copy of a rank's training state in host memory, for a save in the background.

The copy is the only part of such a save that training waits for. Its memory is reserved once, as
one block, and every save reuses it. For a GPU it is pinned, so that the copies overlap.
"""

import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from glm_dist.checkpoint.fragments import Fragment, as_fragment
from glm_dist.errors import CheckpointError

log = logging.getLogger(__name__)

_ALIGNMENT = 64
"""Bytes; a multiple of every element size, and a cache line."""


class Snapshot:
    """Host memory for one copy of this rank's fragments."""

    def __init__(self, device: torch.device) -> None:
        """Reserve nothing yet.

        Args:
            device: The rank's device, on which some or all of the fragments are.
        """
        self._device = device
        self._memory: torch.Tensor | None = None
        self._boxes: dict[str, list[torch.Tensor]] = {}
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def num_bytes(self) -> int:
        """Bytes reserved."""
        return 0 if self._memory is None else self._memory.nbytes

    def reserve(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Reserve memory for these tensors, unless it is already there.

        Args:
            tensors: As for ``take``.

        Raises:
            CheckpointError: There is too little memory.
        """
        boxes = _boxes_to_save(tensors)
        if _forms(boxes) == _forms(self._boxes):
            return
        self._release()
        num_bytes = bytes_to_reserve(tensors)
        try:
            # Zeroed now: else the system would find the pages during the first copy.
            self._memory = torch.zeros(num_bytes, dtype=torch.uint8)
        except RuntimeError as error:  # of torch's allocator
            raise _too_little_memory(num_bytes, "this rank", "than there is") from error
        if self._stream is not None:
            _pin(self._memory)
        self._boxes = _divide(self._memory, boxes)

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Fragment]:
        """Copy the tensors; later changes of them do not reach the copy.

        Returns when the copy is complete. The next call overwrites it.

        Args:
            tensors: Fragments, or tensors that this rank holds whole, by global name.

        Returns:
            The same fragments over host memory; without data if another rank saves them.

        Raises:
            CheckpointError: See ``reserve``.
        """
        self.reserve(tensors)
        if self._stream is None:
            self._copy(tensors)
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                self._copy(tensors)
            self._stream.synchronize()
        return {
            name: _over(as_fragment(tensor), self._boxes[name]) for name, tensor in tensors.items()
        }

    def _copy(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, views in _boxes_to_save(tensors).items():
            for source, box in zip(views, self._boxes[name], strict=True):
                box.copy_(source, non_blocking=True)

    def _release(self) -> None:
        if self._memory is not None and self._stream is not None:
            _runtime().cudaHostUnregister(self._memory.data_ptr())
        self._boxes, self._memory = {}, None


def bytes_to_reserve(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes that ``Snapshot.reserve`` takes for these tensors."""
    boxes = _boxes_to_save(tensors)
    return sum(_aligned(box.nbytes) for views in boxes.values() for box in views)


def check_host_memory(needs: Sequence[tuple[str, int]], available: float) -> None:
    """Refuse copies that this host has no room for; Linux would kill a rank without a word.

    Args:
        needs: Host and bytes of every rank.
        available: Bytes that this host still has.

    Raises:
        CheckpointError: The ranks of this host need more.
    """
    host = socket.gethostname()
    mine = [num_bytes for name, num_bytes in needs if name == host]
    if sum(mine) > available:
        whose = f"the {len(mine)} ranks of {host}" if len(mine) > 1 else host
        limit = f"than the {available / 2**30:.1f} GiB that are available there"
        raise _too_little_memory(sum(mine), whose, limit)


def _too_little_memory(num_bytes: int, whose: str, limit: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint.background=true needs {num_bytes / 2**30:.1f} GiB of host memory on {whose}"
        f" for a copy of the weights and moments, more {limit}.\n"
        "  Ask for more memory (--mem), or set checkpoint.background=false: training then waits for"
        " each save.",
        key="checkpoint.background",
        value=True,
        fix="checkpoint.background=false",
    )


def _boxes_to_save(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    fragments = {name: as_fragment(tensor) for name, tensor in tensors.items()}
    return {name: part.boxes if part.is_saved else [] for name, part in fragments.items()}


def _over(fragment: Fragment, boxes: list[torch.Tensor]) -> Fragment:
    if fragment.is_saved:
        return fragment.with_boxes(boxes)
    empty = torch.empty(0, dtype=fragment.dtype)
    return Fragment(empty, global_shape=fragment.shape, local_shape=fragment.shape, is_saved=False)


def _forms(boxes: Mapping[str, list[torch.Tensor]]) -> dict[str, list[tuple[object, ...]]]:
    return {name: [(box.shape, box.dtype) for box in views] for name, views in boxes.items()}


def _divide(
    memory: torch.Tensor, boxes: Mapping[str, list[torch.Tensor]]
) -> dict[str, list[torch.Tensor]]:
    """Cut memory into one tensor per box.

    Each is the whole of its storage: torch's writer would copy a view of a larger one first, on all
    threads of training.
    """
    array = memory.numpy()
    parts: dict[str, list[torch.Tensor]] = {}
    start = 0
    for name, views in boxes.items():
        parts[name] = []
        for box in views:
            part = torch.from_numpy(array[start : start + box.nbytes])
            parts[name].append(part.view(box.dtype).view(box.shape))
            start += _aligned(box.nbytes)
    return parts


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _pin(memory: torch.Tensor) -> None:
    """Pin memory in place; torch's own allocator of pinned memory rounds up to a power of two."""
    status = _runtime().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if int(status) != 0:
        # Saves are right without it, only slower.
        gib = memory.nbytes / 2**30
        log.warning("could not pin the memory of snapshots gib=%.1f status=%s", gib, status)
