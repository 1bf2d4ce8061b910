"""This rank's part of a global tensor, as boxes that any layout can write and read.

ZeRO gives a rank a flat range of a parameter; tensor and pipeline parallelism make that parameter
itself a part of a global tensor. A flat range of a row-major array is a handful of axis-aligned
boxes, and torch.distributed.checkpoint stores boxes and reshards them for another layout.

Letters: ``global`` is the whole tensor, ``local`` this rank's row-major part of it before ZeRO,
``range`` the elements of the local part that the data covers.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from glm_dist.config.parameter_specs import RowPiece

Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes along each dim."""


def boxes_of_flat_range(shape: Sequence[int], start: int, end: int) -> list[Box]:
    """Split elements ``[start, end)`` of a row-major array into axis-aligned boxes.

    Args:
        shape: Sizes of the array; ``()`` is a single element.
        start: First element, counted along the flattened array.
        end: One past the last element.

    Returns:
        Disjoint boxes, none empty, that follow each other along the flattened array; at most
        ``2 * len(shape) - 1`` of them.
    """
    if not 0 <= start <= end <= math.prod(shape):
        raise ValueError(f"[{start}, {end}) is not a range of an array of shape {tuple(shape)}")
    if start == end:
        return []
    if not shape:
        return [((), ())]
    inner = tuple(shape[1:])
    row = math.prod(inner)
    first, skipped = divmod(start, row)
    last, remainder = divmod(end, row)
    if first == last:
        return _in_row(first, boxes_of_flat_range(inner, skipped, remainder))
    boxes: list[Box] = []
    if skipped:
        boxes += _in_row(first, boxes_of_flat_range(inner, skipped, row))
        first += 1
    if first < last:
        boxes.append(((first, *(0 for _ in inner)), (last - first, *inner)))
    if remainder:
        boxes += _in_row(last, boxes_of_flat_range(inner, 0, remainder))
    return boxes


def _in_row(row: int, boxes: list[Box]) -> list[Box]:
    return [((row, *offsets), (1, *sizes)) for offsets, sizes in boxes]


class Fragment(torch.Tensor):
    """A part of a global tensor, held by this rank, in the form checkpoints read and write.

    The object has the global shape but no storage: boxes are views of ``data``, so loading fills
    ``data`` in place (converting to its dtype).

    Examples:
        A tensor-parallel shard without ZeRO: ``Fragment(weight, global_shape=(4096, 1024),
        offset=(2048, 0))``. A ZeRO fragment of it: ``Fragment(flat, global_shape=(4096, 1024),
        offset=(2048, 0), local_shape=(2048, 1024), start=address.start)``.

    Args:
        data: The local part itself, or, if ``local_shape`` is given, its flattened elements
            ``start, start + 1, ...`` (1-D, contiguous). Elements past the end of the local part
            are ZeRO's padding: neither written nor read.
        global_shape: Sizes of the whole tensor.
        offset: First index of the local part in the whole, along each dim; unset: the origin.
        local_shape: Sizes of the local part; unset: ``data.shape``.
        start: Index in the flattened local part of the first element of ``data``.
        rows: Global rows of the local rows if they are not contiguous in the whole; then
            ``offset[0]`` is not used. Unset: one piece.
        is_saved: False for a copy that another rank saves under a different sharding (the tied
            embedding on the last stage): loaded, never written. Equal shards are written once.

    Raises:
        ValueError: The part does not lie inside the whole.
    """

    is_saved: bool
    _boxes: dict[torch.Size, tuple[ChunkStorageMetadata, torch.Tensor]]

    @staticmethod
    def __new__(
        cls,
        data: torch.Tensor,
        *,
        global_shape: Sequence[int],
        offset: Sequence[int] | None = None,
        local_shape: Sequence[int] | None = None,
        start: int = 0,
        rows: Sequence[RowPiece] | None = None,
        is_saved: bool = True,
    ) -> "Fragment":
        """Describe ``data``; see the class."""
        fragment: Fragment = torch.Tensor._make_wrapper_subclass(
            cls, torch.Size(global_shape), dtype=data.dtype, device=data.device
        )
        origin = tuple(offset) if offset is not None else (0,) * len(global_shape)
        shape = tuple(local_shape) if local_shape is not None else tuple(data.shape)
        if len(shape) != len(global_shape) or len(origin) != len(global_shape):
            raise ValueError(
                f"local shape {shape}, offset {origin} and global shape {tuple(global_shape)} "
                "differ in their number of dims"
            )
        views = _views_of_range(data.detach(), shape, start=start, whole=local_shape is None)
        if rows is not None:
            views = [part for box, view in views for part in _split_rows(box, view, rows)]
            origin = (0, *origin[1:])
        fragment._boxes = {}
        for (offsets, sizes), view in views:
            position = torch.Size(a + b for a, b in zip(origin, offsets, strict=True))
            if any(p + n > g for p, n, g in zip(position, sizes, global_shape, strict=True)):
                raise ValueError(
                    f"a box of {sizes} at {tuple(position)} leaves a tensor of "
                    f"{tuple(global_shape)}"
                )
            fragment._boxes[position] = (ChunkStorageMetadata(position, torch.Size(sizes)), view)
        fragment.is_saved = is_saved
        return fragment

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it static
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
    ) -> Any:
        """Refuse arithmetic: a fragment only describes data."""
        raise NotImplementedError(f"{func} on a checkpoint fragment; use the tensor it was made of")

    @property
    def boxes(self) -> list[torch.Tensor]:
        """The views of ``data``, box by box, without ZeRO's padding."""
        return [view for _, view in self._boxes.values()]

    def with_boxes(self, boxes: Sequence[torch.Tensor]) -> "Fragment":
        """Describe the same part of the whole, held in other tensors.

        Args:
            boxes: As in ``boxes``: the same number, shapes and order.
        """
        device = boxes[0].device if boxes else torch.device("cpu")
        fragment: Fragment = torch.Tensor._make_wrapper_subclass(
            type(self), self.shape, dtype=self.dtype, device=device
        )
        fragment._boxes = {
            position: (chunk, box)
            for (position, (chunk, _)), box in zip(self._boxes.items(), boxes, strict=True)
        }
        fragment.is_saved = self.is_saved
        return fragment

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Show shape and boxes without values."""
        boxes = [(tuple(c.offsets), tuple(c.sizes)) for c, _ in self._boxes.values()]
        return f"Fragment(global_shape={tuple(self.shape)}, boxes={boxes})"

    def __create_write_items__(self, fqn: str, _object: object) -> list[WriteItem]:
        """List the boxes to save; called by torch.distributed.checkpoint."""
        if not self.is_saved:
            return []
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets, number),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties.create_from_tensor(view),
                    size=self.shape,
                ),
            )
            for number, (chunk, view) in enumerate(self._boxes.values())
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """List the boxes to load; called by torch.distributed.checkpoint."""
        return [chunk for chunk, _ in self._boxes.values()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        """Return the view of one box, found by its offset."""
        assert index.offset is not None
        return self._boxes[index.offset][1]


def as_fragment(tensor: torch.Tensor) -> Fragment:
    """Wrap a tensor that this rank holds whole; return fragments unchanged."""
    if isinstance(tensor, Fragment):
        return tensor
    return Fragment(tensor, global_shape=tensor.shape)


def _views_of_range(
    data: torch.Tensor, shape: tuple[int, ...], *, start: int, whole: bool
) -> list[tuple[Box, torch.Tensor]]:
    if whole:
        if start:
            raise ValueError(f"a range that starts at {start} needs its local_shape")
        return [(((0,) * len(shape), shape), data)] if data.numel() else []
    size = math.prod(shape)
    flat = data.view(-1)
    views = []
    position = 0
    for offsets, sizes in boxes_of_flat_range(
        shape, min(start, size), min(start + flat.numel(), size)
    ):
        numel = math.prod(sizes)
        views.append(((offsets, sizes), flat[position : position + numel].view(sizes)))
        position += numel
    return views


def _split_rows(
    box: Box, view: torch.Tensor, rows: Sequence[RowPiece]
) -> list[tuple[Box, torch.Tensor]]:
    offsets, sizes = box
    box_start, box_end = offsets[0], offsets[0] + sizes[0]
    parts = []
    covered = 0
    for piece in rows:
        first = max(box_start, piece.local_start)
        last = min(box_end, piece.local_start + piece.num_rows)
        if first >= last:
            continue
        global_row = piece.global_start + first - piece.local_start
        part: Box = ((global_row, *offsets[1:]), (last - first, *sizes[1:]))
        parts.append((part, view[first - box_start : last - box_start]))
        covered += last - first
    if covered != box_end - box_start:
        raise ValueError(f"the row pieces cover {covered} of rows {box_start} to {box_end}")
    return parts
