"""Throughput and remaining time, computed from the phase timer.

A record's speed counts only the time of its steps; validation and checkpoints are pauses. The
estimated time of arrival includes them, because the rest of the run will pause as well.
"""

from glm_dist.observe.metrics import (
    ETA_SECONDS,
    SAVE_SHARE,
    SECONDS_PER_STEP,
    TOKENS_PER_SECOND,
    TOKENS_PER_SECOND_PER_GPU,
    WAIT_SHARE,
)
from glm_dist.observe.phases import DATA, PROFILE, SAVE, VALIDATE, PhaseClock

PAUSES = (VALIDATE, SAVE, PROFILE)
"""Phases that belong to no step."""

WAITS = (DATA,)
"""Phases of a step without computation."""


class Throughput:
    """Steps, tokens and waits since the last record and since the start."""

    def __init__(
        self,
        *,
        first_step: int,
        last_step: int,
        world_size: int,
        phases: PhaseClock,
    ) -> None:
        """Start counting.

        Args:
            first_step: Steps done before this process began.
            last_step: Step at which the run ends.
            world_size: Accelerators that share the work.
            phases: Clock of the loop; nobody else may take its seconds.
        """
        self._phases = phases
        self._first_step = first_step
        self._last_step = last_step
        self._world_size = world_size
        self._done = first_step
        self._settled: tuple[int, float] | None = None
        self._window_start = phases.now()
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
            self._settled = (self._done, self._phases.now())

    def take(self) -> dict[str, float]:
        """Return metrics of the steps since the last call, and start a new window.

        Returns:
            Metric name -> value; empty if no step was done.
        """
        now, by_phase = self._phases.now(), self._phases.take()
        steps = self._done - self._window_first
        paused = sum(by_phase.get(phase, 0.0) for phase in PAUSES)
        seconds = now - self._window_start - paused
        metrics: dict[str, float] = {}
        if steps > 0 and seconds > 0:
            per_second = self._tokens / seconds
            metrics = {
                SECONDS_PER_STEP: seconds / steps,
                TOKENS_PER_SECOND: per_second,
                TOKENS_PER_SECOND_PER_GPU: per_second / self._world_size,
                ETA_SECONDS: self._eta(now, seconds / steps),
                SAVE_SHARE: by_phase.get(SAVE, 0.0) / (now - self._window_start),
            }
            metrics |= {
                WAIT_SHARE + phase: by_phase[phase] / seconds
                for phase in WAITS
                if phase in by_phase
            }
        self._window_start = now
        self._window_first = self._done
        self._tokens = 0
        return metrics

    def _eta(self, now: float, seconds_per_step: float) -> float:
        """Estimate the seconds to the last step from the pace since the first one, with pauses."""
        remaining = self._last_step - self._done
        if self._settled is not None and self._done > self._settled[0]:
            step, moment = self._settled
            seconds_per_step = (now - moment) / (self._done - step)
        return remaining * seconds_per_step
