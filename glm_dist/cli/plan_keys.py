"""What the command line of a plan decides, and what is left to the search."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glm_dist.config.schema import RunConfig
from glm_dist.errors import ConfigError
from glm_dist.plan.search import SEARCHED
from glm_dist.tasks.finetune import Finetuning, configure

GROUPS = {
    "parallel": tuple(key for key in SEARCHED if key.startswith("parallel.")),
    "zero": ("zero.stage",),
    "recompute": ("recompute.mode", "recompute.segment_layers"),
}
"""Searched keys that a group decides."""


@dataclass(frozen=True)
class PlanInput:
    """A configuration from which a search begins."""

    prepared: Finetuning
    overrides: tuple[str, ...]
    """As typed, with what was given up of the experiment."""
    fixed: frozenset[str]
    """Searched keys that were typed."""
    given_up: tuple[str, ...]
    """Overrides that were not typed; any plan needs its own value of their keys."""
    reasons: tuple[str, ...]
    """Why each of them."""

    @property
    def config(self) -> RunConfig:
        """The configuration."""
        return self.prepared.config

    @property
    def told(self) -> frozenset[str]:
        """Keys whose value a plan tells in any case: the experiment has another one."""
        return decided_keys(self.given_up)


def read_plan_input(typed: Sequence[str], *, config_dir: Path | None) -> PlanInput:
    """Compose what was typed.

    A search chooses values of its keys, so an experiment's value that contradicts a typed one is
    given up: ZeRO 2 of an experiment where a pipeline is typed.

    Args:
        typed: Overrides.
        config_dir: Folder of the groups; None: conf/.

    Raises:
        GlmDistError: What was typed is wrong whatever else is chosen.
    """
    fixed = decided_keys(typed)
    given_up: list[str] = []
    reasons: list[str] = []
    while True:
        overrides = (*typed, *given_up)
        try:
            prepared = configure(overrides, config_dir=config_dir)
        except ConfigError as error:
            keys = decided_keys([error.fix])
            if not keys or keys & (fixed | decided_keys(given_up)):
                raise
            given_up.append(error.fix)
            reasons.append(str(error).splitlines()[0])
        else:
            return PlanInput(prepared, overrides, fixed, tuple(given_up), tuple(reasons))


def decided_keys(overrides: Sequence[str]) -> frozenset[str]:
    """Return the searched keys that overrides decide."""
    typed = {text.lstrip("+").partition("=")[0] for text in overrides}
    return frozenset(
        key
        for key in SEARCHED
        if key in typed or any(group in typed and key in keys for group, keys in GROUPS.items())
    )
