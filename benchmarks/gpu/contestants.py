"""Contestants on a GPU, in order of importance: a short budget of time leaves out the last.

A contestant of GLM is a list of overrides, as a user types them, so that the benchmark runs exactly
what training runs. GPTModel is megatron-core's own model, with the attention that its name says.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

MICRO_BATCHES = 4
ROWS_OF = {"base": 32768, "large": 32768, "410m": 32768, "2b": 8192, "tiny": 64}
"""Positions of a micro-batch: most of 80 GB without recomputation."""

CEILINGS, ATTENTION, GLM, GPT = "ceilings", "attention", "glm", "gpt"


@dataclass(frozen=True)
class Problem:
    """Model and rows of a table's section."""

    size: str
    """Option of conf/model."""
    row_length: int
    dropout: float = 0.0

    @property
    def rows(self) -> int:
        """Return the rows of a micro-batch."""
        return max(ROWS_OF[self.size] // self.row_length, 1)

    def __str__(self) -> str:
        return f"{self.size}, {self.row_length}, dropout {self.dropout:g}"


@dataclass(frozen=True)
class Contestant:
    """One line of the table."""

    name: str
    kind: str = GLM
    overrides: tuple[str, ...] = ()
    """Of the configuration; GPTModel takes ZeRO and recomputation from it."""
    attention: str = ""
    """Of GPTModel: see ``gpt.layer_spec``."""
    mathematics: str = "GLM"
    """Contestants of the same mathematics must have the same loss and norm without dropout."""


@dataclass(frozen=True)
class Job:
    """One process: a contestant on a problem."""

    problem: Problem
    contestant: Contestant
    steps: int = 5
    """Timed steps after the warm-up."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Job":
        contestant = Contestant(**record["contestant"])
        contestant = replace(contestant, overrides=tuple(contestant.overrides))
        return cls(Problem(**record["problem"]), contestant, record["steps"])

    def __str__(self) -> str:
        return f"{self.contestant.name} ({self.problem})"


ZERO_1 = ("zero=stage1",)
MACHINE = Contestant("ceilings of the machine", CEILINGS, mathematics="")
ATTENTION_TABLE = Contestant("attention alone", ATTENTION, mathematics="")

STANDARD = Contestant("GLM, ZeRO 1", overrides=ZERO_1)
GPT_FLASH = Contestant("GPTModel, flash attention", GPT, ZERO_1, "flash", "GPT")
GPT_OWN = Contestant("GPTModel, its own attention", GPT, ZERO_1, "own", "GPT")
GPT_TE = Contestant("GPTModel, TransformerEngine", GPT, ZERO_1, "te", "GPT")

OPTIONS = (
    Contestant("GLM, ZeRO 2", overrides=("zero=stage2",)),
    Contestant("GLM, ZeRO 1, compile.pointwise=off", overrides=(*ZERO_1, "compile.pointwise=off")),
    Contestant("GLM, ZeRO 1, compile=fused", overrides=(*ZERO_1, "compile=fused")),
    Contestant("GLM, ZeRO 0", overrides=("zero=stage0",)),
    Contestant("GLM, ZeRO 1, recompute=selective", overrides=(*ZERO_1, "recompute=selective")),
    Contestant("GLM, ZeRO 1, recompute=full", overrides=(*ZERO_1, "recompute=full")),
)


def jobs(*, has_te: bool, steps: int) -> list[Job]:
    """List every job, the most important first.

    Args:
        has_te: True if TransformerEngine is installed.
        steps: Timed steps of each.
    """
    plain, dropped = Problem("2b", 1024), Problem("2b", 1024, 0.1)
    te = [GPT_TE] if has_te else []
    listed = [
        (plain, [MACHINE, STANDARD, GPT_FLASH]),
        (dropped, [STANDARD, GPT_FLASH]),
        (plain, [*te, OPTIONS[0], OPTIONS[1], OPTIONS[2], OPTIONS[3]]),
        (plain, [ATTENTION_TABLE]),
        (Problem("large", 512, 0.1), [STANDARD, GPT_FLASH]),
        (Problem("base", 512, 0.1), [STANDARD, GPT_FLASH]),
        (Problem("410m", 1024, 0.1), [STANDARD, GPT_FLASH]),
        (plain, [GPT_OWN, *OPTIONS[4:]]),
        (dropped, [*te, *OPTIONS, GPT_OWN]),
        (Problem("large", 512), [MACHINE, STANDARD, GPT_FLASH, *te, *OPTIONS, GPT_OWN]),
        (Problem("base", 512), [MACHINE, STANDARD, GPT_FLASH, *te, *OPTIONS, GPT_OWN]),
        (Problem("410m", 1024), [MACHINE, STANDARD, GPT_FLASH, *te, *OPTIONS, GPT_OWN]),
    ]
    return [Job(problem, each, steps) for problem, contestants in listed for each in contestants]


def dry_jobs() -> list[Job]:
    """List the jobs that show on any machine that the benchmark works."""
    problem = Problem("tiny", 64)
    return [Job(problem, each, steps=2) for each in (MACHINE, STANDARD, GPT_FLASH)]


def chosen(
    listed: Sequence[Job],
    *,
    sizes: Sequence[str],
    dropout: float | None,
    only: str,
    attention: bool,
) -> list[Job]:
    """Return the jobs that the arguments name, in their order.

    Args:
        listed: All jobs.
        sizes: Options of conf/model.
        dropout: One rate, or None for all.
        only: Part of the contestant's name; empty for all.
        attention: False leaves the table of attention alone out.
    """
    return [
        job
        for job in listed
        if job.problem.size in sizes
        and (dropout is None or job.problem.dropout == dropout)
        and only in job.contestant.name
        and (attention or job.contestant.kind != ATTENTION)
    ]
