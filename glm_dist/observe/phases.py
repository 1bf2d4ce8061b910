"""Timer of named phases: a rank's time by phase, and its current phase."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

DATA = "data"
"""Waiting for rows."""
STEP = "step"
"""Forward, backward and update."""
VOTE = "vote"
"""Vote on a stop request."""
RECORD = "record"
"""Reading results from the device; on GPUs the steps' computation ends here."""
VALIDATE = "validate"
SAVE = "save"
REWIND = "rewind"
"""Loading an earlier checkpoint in the middle of a run."""
PROFILE = "profile"
"""Starting the profiler, and writing what it has traced."""


class PhaseClock:
    """Seconds by phase. Phases may be nested; time counts only for the innermost one."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        listener: Callable[[str | None], None] | None = None,
        annotate: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Start outside of every phase.

        Args:
            clock: Seconds, from any origin.
            listener: Called at every change with the innermost phase; None between phases.
            annotate: Called with each phase for a context around it.
        """
        self._annotate = annotate
        self._clock = clock
        self._listener = listener
        self._seconds: dict[str, float] = {}
        self._totals: dict[str, float] = {}
        self._running: list[str] = []
        self._since = clock()

    @property
    def current(self) -> str | None:
        """The innermost phase that is running."""
        return self._running[-1] if self._running else None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time of the block as a phase.

        Args:
            phase: Its name, which metrics may carry.
        """
        self._charge()
        self._running.append(phase)
        self._notify()
        try:
            with self._annotate(phase):
                yield
        finally:
            self._charge()
            self._running.pop()
        self._notify()  # not after an exception: its report names the phase that raised it

    def now(self) -> float:
        """Return the clock's reading."""
        return self._clock()

    def take(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call."""
        self._charge()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def totals(self) -> dict[str, float]:
        """Return the seconds of each phase since the clock was created."""
        self._charge()
        return dict(self._totals)

    def _notify(self) -> None:
        if self._listener is not None:
            self._listener(self.current)

    def _charge(self) -> None:
        now = self._clock()
        if self._running:
            phase = self._running[-1]
            self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
            self._totals[phase] = self._totals.get(phase, 0.0) + now - self._since
        self._since = now
