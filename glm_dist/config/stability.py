"""The section about unstable training: spikes, values that are not finite, replicas that differ.

Part of the schema; see ``schema.py`` for its rules.
"""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from glm_dist.config.rules import Section, bounded


class NonFiniteAction(Enum):
    """Reaction to a step whose gradients or loss are infinite or undefined."""

    stop = "stop"
    skip = "skip"
    rewind = "rewind"


class SpikeAction(Enum):
    """Reaction to a step whose loss or gradient norm is far above the steps before."""

    off = "off"
    warn = "warn"
    stop = "stop"
    skip = "skip"
    rewind = "rewind"


@dataclass
class StabilityConfig(Section):
    """Spikes, values that are not finite, replicas that differ (conf/stability)."""

    key: ClassVar[str] = "stability"

    on_non_finite: NonFiniteAction = NonFiniteAction.stop
    """Reaction to a gradient or loss that is not finite; its update is never applied. skip: go on
    with the next rows; rewind: see on_spike; stop: end the job. An fp16 overflow that a smaller
    loss scale can avoid is no such step."""
    on_spike: SpikeAction = SpikeAction.off
    """Reaction to a spike of loss or gradient norm. warn, stop: at the next metric record. skip:
    drop the update and go on with the next rows. rewind: go back to the newest checkpoint and pass
    over the rows of the steps since; like skip before the first one. skip and rewind read loss and
    norm on the host before each update, which costs one small reduction a step."""
    spike_deviations: float = bounded(10.0, above=0, default=10.0)
    """Distance from the median of the window, in robust standard deviations (1.4826 x the median
    absolute deviation), from which a value is a spike."""
    window: int = bounded(128, at_least=4, at_most=10_000, default=128)
    """Steps that a value is compared with; the first ones of a run are not judged."""
    max_interventions: int = bounded(10, at_least=0, at_most=10_000, default=0)
    """Skips and rewinds of the whole run; the next step that needs one ends the job."""
    compare_replicas_interval: int = bounded(1000, at_least=0, default=0)
    """Steps between comparisons of the weights that several ranks hold; 0 turns them off. Replicas
    that differ end the job. ZeRO 3 has no replicas to compare."""

    @property
    def judges_before_update(self) -> bool:
        """True if loss and norm must be known before each update."""
        return self.on_spike in (SpikeAction.skip, SpikeAction.rewind)

    @property
    def rewinds(self) -> bool:
        """True if a step may lead back to a checkpoint."""
        return self.on_spike is SpikeAction.rewind or self.on_non_finite is NonFiniteAction.rewind
