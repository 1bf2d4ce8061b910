"""The section about a comparison of pretraining objectives (``glm-dist compare``).

Part of the schema; see ``schema.py`` for its rules. Training reads nothing of it.
"""

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import ClassVar

from glm_dist.config.rules import Section
from glm_dist.errors import ConfigError

RANDOM = "random"
"""Name of the initial weights that no run has trained."""


@dataclass
class CompareConfig(Section):
    """Comparison of pretraining objectives (glm-dist compare)."""

    key: ClassVar[str] = "compare"

    objectives: list[str] = field(default_factory=list)
    """Options of corruption, each of which pretrains one run; the others are compared with the
    first. Random initial weights are always compared as well."""
    tasks: list[str] = field(default_factory=list)
    """Options of task, each of which finetunes all initial weights."""
    seeds: list[int] = field(default_factory=list)
    """Seeds of finetuning: one run for each choice of initial weights, task and seed."""
    finetune: list[str] = field(default_factory=list)
    """Overrides of every finetuning, such as optimizer.learning_rate=1e-3."""
    last_words: str | None = None
    """Texts without their last word, JSON lines with text and targets; the pretrained runs are
    measured by the nats of that word. Unset: they are not."""

    def __post_init__(self) -> None:
        """Check the lists as well; see ``Section``."""
        super().__post_init__()
        for name, values in (("objectives", self.objectives), ("tasks", self.tasks)):
            _check_different(f"compare.{name}", values)
            _check_names(f"compare.{name}", values)
        _check_different("compare.seeds", [str(seed) for seed in self.seeds])
        for objective in self.objectives:
            if objective == RANDOM:
                raise ConfigError(
                    f"compare.objectives lists {RANDOM}, which is always compared.\n"
                    "  Leave it out.",
                    key="compare.objectives",
                    value=RANDOM,
                    fix="",
                )
        if min(self.seeds, default=0) < 0:
            raise ConfigError(
                f"compare.seeds={self.seeds}, but seeds must be whole numbers of at least 0.\n"
                "  Set compare.seeds=[1,2,3].",
                key="compare.seeds",
                value=min(self.seeds),
                fix="compare.seeds=[1,2,3]",
            )

    @staticmethod
    def short(choice: str) -> str:
        """Return the name of a task or objective in the names of runs and in the table."""
        return PurePath(choice).stem


def _check_names(key: str, values: list[str]) -> None:
    names = [CompareConfig.short(value) for value in values]
    twice = [name for n, name in enumerate(names) if name in names[:n]]
    if twice:
        raise ConfigError(
            f"{key} lists two files named {twice[0]}, which would give their runs one name.\n"
            "  Rename one of them.",
            key=key,
            value=twice[0],
            fix="rename one of them",
        )


def _check_different(key: str, values: list[str]) -> None:
    twice = [value for n, value in enumerate(values) if value in values[:n]]
    if twice:
        kept = ",".join(dict.fromkeys(values))
        raise ConfigError(
            f"{key} lists {twice[0]} twice.\n  Set {key}=[{kept}].",
            key=key,
            value=twice[0],
            fix=f"{key}=[{kept}]",
        )
