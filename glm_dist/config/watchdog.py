"""Deadlines of the watchdog, and the share from which on a slow rank is named (conf/watchdog)."""

from dataclasses import dataclass
from typing import ClassVar

from glm_dist.config.rules import Section, bounded


@dataclass
class WatchdogConfig(Section):
    """Deadlines for ranks that hang, and notice of slow ones (conf/watchdog)."""

    key: ClassVar[str] = "watchdog"

    start_minutes: float = bounded(10.0, at_least=0, at_most=1440, default=0.0)
    """Minutes for all processes to join the job; then it ends and names the absent ranks.
    0: parallel.timeout_minutes."""
    first_minutes: float = bounded(20.0, at_least=0, at_most=1440, default=0.0)
    """Minutes for what was timed fewer than three times: restoring, the first steps with their
    compilation, the first validations and saves. 0 switches the watchdog off."""
    floor_seconds: float = bounded(300.0, above=0, default=300.0)
    """Shortest deadline of a phase, such as step or save, that was timed at least three times."""
    factor: float = bounded(10.0, above=1, default=10.0)
    """Deadline of a phase in multiples of its median duration, if that is above floor_seconds. No
    deadline exceeds nine tenths of parallel.timeout_minutes."""
    straggler_share: float = bounded(0.2, at_least=0, default=0.0)
    """Name a rank whose own time per step, without waiting, is longer than the others' by this
    share over about 15 steps; 0 names none."""
