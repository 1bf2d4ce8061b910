"""Gathers of updated weights that forward waits for block by block."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from glm_dist.parallel.exchange import wait_for


class WeightGathers:
    """Gathers in flight, by bucket."""

    def __init__(
        self, bucket_of: Mapping[torch.nn.Parameter, int], blocks: Iterable[torch.nn.Module]
    ) -> None:
        """Let each block wait for its weights before it runs.

        Args:
            bucket_of: Bucket of each parameter that learns.
            blocks: Modules that hold all parameters; of nested ones the inner first. None: whoever
                calls ``complete`` does so before forward.

        Raises:
            RuntimeError: Some parameter is in no block, and would be read too early.
        """
        self._in_flight: dict[int, dist.Work] = {}
        self._hooks = []
        left = dict(bucket_of)
        blocks = list(blocks)
        for block in blocks:
            buckets = {left.pop(each) for each in list(block.parameters()) if each in left}
            if buckets:
                complete = partial(_complete_in_forward, self.complete, tuple(sorted(buckets)))
                self._hooks.append(block.register_forward_pre_hook(complete))
        if blocks and left:
            raise RuntimeError(f"no block waits for the weights of {len(left)} parameters")

    def add(self, bucket: int, work: dist.Work) -> None:
        """Note that a bucket's gather has begun."""
        self._in_flight[bucket] = work

    def complete(self, buckets: Iterable[int] | None = None) -> None:
        """Let what follows wait for these buckets; None: for all."""
        for bucket in list(self._in_flight) if buckets is None else buckets:
            work = self._in_flight.pop(bucket, None)
            if work is not None:
                wait_for(work)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _complete_in_forward(
    complete: Callable[[Iterable[int]], None], buckets: tuple[int, ...], *_: Any
) -> None:
    complete(buckets)
