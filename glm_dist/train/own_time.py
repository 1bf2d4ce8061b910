"""Timer of a rank's own work, without the waits for other ranks.

On GPUs the host runs ahead of the device, so the times are taken on the device's stream.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WINDOW_STEPS = 15
"""Steps whose median time is compared, so that single slow steps do not count."""

ENOUGH_STEPS = 8
"""Steps before the first comparison."""


class OwnTime:
    """Times of the blocks in which a rank computes for itself, by step.

    On GPUs they are taken on the device's stream and read only once they are there, so that no
    step waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        """Start without a step.

        Args:
            device: The rank's device.
        """
        self._is_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._pending: deque[tuple[float, list[tuple[torch.cuda.Event, torch.cuda.Event]]]]
        self._pending = deque(maxlen=WINDOW_STEPS)
        self._done: deque[float] = deque(maxlen=WINDOW_STEPS)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Add the block to the current step."""
        if self._is_cuda:
            first, last = (_event() for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((first, last))
            return
        begin = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - begin

    def end_step(self) -> None:
        """Close the current step."""
        self._pending.append((self._seconds, self._events))
        self._seconds, self._events = 0.0, []

    def discard(self) -> None:
        """Forget the current step: the first one compiles, a validation is none."""
        self._seconds, self._events = 0.0, []

    def median(self) -> float:
        """Return the median seconds of the latest finished steps; 0 before there are enough."""
        while self._pending and all(_is_there(last) for _, last in self._pending[0][1]):
            seconds, events = self._pending.popleft()
            device = sum(first.elapsed_time(last) for first, last in events) / 1000
            self._done.append(seconds + device)
        return statistics.median(self._done) if len(self._done) >= ENOUGH_STEPS else 0.0


def _event() -> torch.cuda.Event:
    # torch's events have no types
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _is_there(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]
