"""Parameters of a rank in flat buffers: one of weights, one of fp32 gradients.

The buffers consist of buckets, the units of communication. A bucket has whole parameters of one
weight decay, from the last layer to the first, as backward produces their gradients. Its size is a
multiple of the number of ranks that share the optimizer, so that each has an equal part of it.

Parameters become views of the buffer of weights, and get views of the other as main gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from glm_dist.model.main_gradient import ARRIVED, MAIN_GRADIENT, arrived
from glm_dist.model.parameters import ParameterShard

ALIGNMENT = 64
"""Elements to which parameters and parts are aligned: 128 bytes in 16 bits, as the fastest matrix
products and collectives want."""


@dataclass(frozen=True)
class Piece:
    """A parameter in the flat buffers."""

    shard: ParameterShard
    start: int
    """Index of its first element."""

    @property
    def end(self) -> int:
        """One past its last element."""
        return self.start + self.shard.parameter.numel()


@dataclass(frozen=True)
class Bucket:
    """Consecutive parameters that are communicated together."""

    pieces: tuple[Piece, ...]
    start: int
    size: int
    """Elements, with padding."""
    decays: bool
    """True if weight decay applies to all of them."""
    is_late: bool
    """True if their gradients are complete only after the whole backward."""

    def part(self, index: int, parts: int) -> slice:
        """Return one of equal parts of the bucket, as elements of the buffers."""
        length = self.size // parts
        return slice(self.start + index * length, self.start + (index + 1) * length)


def plan_buckets(
    shards: Sequence[ParameterShard],
    *,
    bucket_size: int,
    parts: int,
    is_late: Callable[[ParameterShard], bool],
) -> list[Bucket]:
    """Divide the parameters that learn into buckets.

    Args:
        shards: Parameters in the order in which forward uses them.
        bucket_size: Elements after which a bucket is full; none is divided.
        parts: Ranks that share the optimizer.
        is_late: Says of which parameters the gradient is complete only after the whole backward.

    Returns:
        Buckets in the order in which backward completes them, which is their order in the buffers.
    """
    filled: list[list[tuple[int, ParameterShard]]] = []
    open_buckets: dict[tuple[bool, bool], list[tuple[int, ParameterShard]]] = {}
    trained = [shard for shard in reversed(shards) if shard.is_trained]
    for number, shard in enumerate(trained):
        key = (is_late(shard), shard.decays)
        if key not in open_buckets:
            open_buckets[key] = []
            filled.append(open_buckets[key])
        open_buckets[key].append((number, shard))
        if sum(each.parameter.numel() for _, each in open_buckets[key]) >= bucket_size:
            del open_buckets[key]
    filled.sort(key=lambda members: (is_late(members[-1][1]), members[-1][0]))
    buckets: list[Bucket] = []
    start = 0
    for members in filled:
        pieces, end = [], start
        for _, shard in members:
            pieces.append(Piece(shard, end))
            end += _aligned(shard.parameter.numel(), ALIGNMENT)
        size = _aligned(end - start, ALIGNMENT * parts)
        shard = members[0][1]
        buckets.append(Bucket(tuple(pieces), start, size, shard.decays, is_late(shard)))
        start += size
    return buckets


def _aligned(number: int, unit: int) -> int:
    return -(-number // unit) * unit


@dataclass(frozen=True)
class OwnRange:
    """The elements of one parameter that this rank updates."""

    shard: ParameterShard
    bucket: int
    """Index of its bucket."""
    in_part: int
    """Index of the first element in this rank's part of the bucket."""
    in_parameter: int
    """Index of the first element in the flattened parameter."""
    numel: int

    def within(self, part: torch.Tensor) -> torch.Tensor:
        """Return these elements of a tensor that covers this rank's part of the bucket."""
        return part.narrow(0, self.in_part, self.numel)


class FlatBuffers:
    """Weights and gradients of this rank, and its part of each bucket."""

    def __init__(self, buckets: Sequence[Bucket], *, index: int, parts: int) -> None:
        """Move the parameters into a flat buffer, and create their main gradients.

        Args:
            buckets: Output of ``plan_buckets``.
            index: Part that this rank updates.
            parts: Parts of each bucket.
        """
        self.buckets = buckets
        self._own = [bucket.part(index, parts) for bucket in buckets]
        pieces = [piece for bucket in buckets for piece in bucket.pieces]
        self._parameters = [piece.shard.parameter for piece in pieces]
        size = sum(bucket.size for bucket in buckets)
        like = self._parameters[0] if pieces else torch.empty(0)
        self.weights = torch.zeros(size, dtype=like.dtype, device=like.device)
        for piece in pieces:
            _become_view(piece.shard.parameter, self.weights[piece.start : piece.end])
        self.gradients = torch.zeros(size, dtype=torch.float32, device=like.device)
        self._hooks = []
        for piece in pieces:
            parameter = piece.shard.parameter
            main = self.gradients[piece.start : piece.end].view(parameter.shape)
            setattr(parameter, MAIN_GRADIENT, main)
            hook = parameter.register_post_accumulate_grad_hook(_add_to_main)  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    def own_weights(self, bucket: int) -> torch.Tensor:
        """Return this rank's part of a bucket's weights [n], a view."""
        return self.weights[self._own[bucket]]

    def own_gradients(self, bucket: int) -> torch.Tensor:
        """Return this rank's part of a bucket's gradients [n], a view."""
        return self.gradients[self._own[bucket]]

    def whole_weights(self, bucket: int) -> torch.Tensor:
        """Return a bucket's weights, a view."""
        return self.weights[_range(self.buckets[bucket])]

    def whole_gradients(self, bucket: int) -> torch.Tensor:
        """Return a bucket's gradients, a view."""
        return self.gradients[_range(self.buckets[bucket])]

    def bucket_of(self) -> dict[torch.nn.Parameter, int]:
        """Return the bucket of each parameter that learns."""
        return {
            piece.shard.parameter: number
            for number, bucket in enumerate(self.buckets)
            for piece in bucket.pieces
        }

    def own_ranges(self) -> Iterator[OwnRange]:
        """Yield the elements of each parameter that this rank updates; at most one range each."""
        for number, (bucket, own) in enumerate(zip(self.buckets, self._own, strict=True)):
            for piece in bucket.pieces:
                first, last = max(piece.start, own.start), min(piece.end, own.stop)
                if first < last:
                    in_part, in_parameter = first - own.start, first - piece.start
                    yield OwnRange(piece.shard, number, in_part, in_parameter, last - first)

    def listen(self, shard: ParameterShard, listener: Callable[[], None]) -> None:
        """Call a function whenever a gradient was added to a parameter's main gradient."""
        setattr(shard.parameter, ARRIVED, listener)

    def close(self) -> None:
        """Remove hooks and main gradients; the parameters keep their values."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._parameters:
            for name in (MAIN_GRADIENT, ARRIVED):
                if hasattr(parameter, name):
                    delattr(parameter, name)
        self._hooks, self._parameters = [], []


def _range(bucket: Bucket) -> slice:
    return slice(bucket.start, bucket.start + bucket.size)


@torch.no_grad()
def _become_view(parameter: torch.nn.Parameter, flat: torch.Tensor) -> None:
    flat.copy_(parameter.flatten())
    parameter.data = flat.view(parameter.shape)


def _add_to_main(parameter: torch.Tensor) -> None:
    """Add autograd's gradient to the main gradient, and free it."""
    if parameter.grad is None:  # whoever computed it has added it already
        return
    getattr(parameter, MAIN_GRADIENT).add_(parameter.grad)
    parameter.grad = None
    arrived(parameter)
