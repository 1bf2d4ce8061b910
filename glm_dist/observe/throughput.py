"""How fast training goes and when it ends: arithmetic on a clock that is handed in.

A record's speed counts the time of its steps alone; validation and checkpoints are pauses. The
estimated time of arrival counts everything, because the rest of the run will pause as well.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from glm_dist.observe.metrics import (
    ETA_SECONDS,
    SECONDS_PER_STEP,
    TOKENS_PER_SECOND,
    TOKENS_PER_SECOND_PER_GPU,
    WAIT_SHARE,
)


class Throughput:
    """Steps, tokens and waits since the last record and since the start."""

    def __init__(
        self,
        *,
        first_step: int,
        last_step: int,
        world_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            first_step: Steps done before this process began.
            last_step: Step at which the run ends.
            world_size: Accelerators that share the work.
            clock: Seconds, from any origin.
        """
        self._clock = clock
        self._first_step = first_step
        self._last_step = last_step
        self._world_size = world_size
        self._done = first_step
        self._settled: tuple[int, float] | None = None
        self._window_start = clock()
        self._paused = 0.0
        self._waits: dict[str, float] = {}
        self._tokens = 0
        self._window_first = first_step

    def step_done(self, tokens: int) -> None:
        """Count a step.

        Args:
            tokens: Positions it processed over all replicas.
        """
        self._done += 1
        self._tokens += tokens
        if self._settled is None:
            # The first step compiles kernels and opens connections; the estimate starts after it.
            self._settled = (self._done, self._clock())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Mark work that belongs to no step, such as a validation or a checkpoint."""
        started = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - started

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        """Mark time inside a step in which nothing is computed.

        Args:
            reason: What is waited for, such as ``data``; names the metric.
        """
        started = self._clock()
        try:
            yield
        finally:
            self._waits[reason] = self._waits.get(reason, 0.0) + self._clock() - started

    def take(self) -> dict[str, float]:
        """Metrics of the steps since the last call, which starts a new window.

        Returns:
            Metric name -> value; empty if no step was done.
        """
        now = self._clock()
        steps = self._done - self._window_first
        seconds = now - self._window_start - self._paused
        metrics: dict[str, float] = {}
        if steps > 0 and seconds > 0:
            per_second = self._tokens / seconds
            metrics = {
                SECONDS_PER_STEP: seconds / steps,
                TOKENS_PER_SECOND: per_second,
                TOKENS_PER_SECOND_PER_GPU: per_second / self._world_size,
                ETA_SECONDS: self._eta(now, seconds / steps),
            }
            metrics |= {WAIT_SHARE + name: wait / seconds for name, wait in self._waits.items()}
        self._window_start = now
        self._window_first = self._done
        self._paused = 0.0
        self._tokens = 0
        self._waits = {}
        return metrics

    def _eta(self, now: float, seconds_per_step: float) -> float:
        """Seconds to the last step at the pace since the first one, pauses included."""
        remaining = self._last_step - self._done
        if self._settled is not None and self._done > self._settled[0]:
            step, moment = self._settled
            seconds_per_step = (now - moment) / (self._done - step)
        return remaining * seconds_per_step
