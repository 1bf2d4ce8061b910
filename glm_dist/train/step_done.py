"""A finished step, as observers see it, and the rule of periodic work."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepDone:
    """A finished step, passed to observers."""

    step: int
    """Steps done since the run began."""
    is_first: bool = False
    """True for the first step of this process."""
    is_last: bool = False
    """True for the run's last step."""
    stops: bool = False
    """True if the run ends after this step because a stop was requested."""
    learning_rate: float = 0.0


def is_due(step: int, interval: int, *, at_once: bool) -> bool:
    """Return True after every ``interval`` steps, and at once if asked; 0 is never."""
    return interval > 0 and (at_once or step % interval == 0)
