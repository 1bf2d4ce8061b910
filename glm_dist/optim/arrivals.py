"""Gradients that have arrived, so that a bucket's reduction begins while backward goes on.

Replicas must begin their collectives in the same order. So a bucket waits for all before it, and
what has not begun when backward ends is begun then: a parameter without a gradient in some
micro-batch costs overlap, never order.
"""

from collections.abc import Callable
from functools import partial

from glm_dist.optim.flat_buffers import FlatBuffers


class Arrivals:
    """Counts the gradients of a step."""

    def __init__(self, buffers: FlatBuffers, begin: Callable[[int], None]) -> None:
        """Listen to every gradient of a bucket that is not late; a late one is never complete here.

        Args:
            buffers: Parameters and their buckets.
            begin: Begins the reduction of a bucket, by its index.
        """
        self._begin = begin
        self._sizes = [len(bucket.pieces) for bucket in buffers.buckets]
        self._missing = [0] * len(self._sizes)
        self._next = len(self._sizes)
        for number, bucket in enumerate(buffers.buckets):
            if not bucket.is_late:
                for piece in bucket.pieces:
                    buffers.listen(piece.shard, partial(self._arrived, number))

    def expect(self, micro_batches: int) -> None:
        """Begin a step in which every parameter gets one gradient from each micro-batch."""
        self._missing = [size * micro_batches for size in self._sizes]
        self._next = 0

    def finish(self) -> None:
        """Begin what backward left."""
        while self._next < len(self._sizes):
            self._begin_next()

    def _arrived(self, bucket: int) -> None:
        self._missing[bucket] -= 1
        if bucket < self._next or self._missing[bucket] < 0:
            raise RuntimeError(f"a gradient arrived after the reduction of bucket {bucket} began")
        while self._next < len(self._sizes) and self._missing[self._next] == 0:
            self._begin_next()

    def _begin_next(self) -> None:
        self._next += 1
        self._begin(self._next - 1)
