"""The best checkpoint of a run, named by ``best.json`` beside the checkpoints; no torch, no ranks.

The file is replaced in one move after the checkpoint is complete, so it never names an unfinished
one; the checkpoint stays as long as the file names it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from glm_dist.errors import CheckpointError
from glm_dist.files import is_file, write_atomically

BEST_FILE = "best.json"

StepChoice: TypeAlias = int | Literal["best"] | None
"""A step, the best one, or the newest."""


@dataclass(frozen=True)
class Best:
    """A checkpoint and the validation that chose it."""

    step: int
    metric: str
    """Full name, as in the records."""
    value: float


def write_best(directory: Path, best: Best | None) -> None:
    """Replace the file; None removes it.

    Args:
        directory: The run's checkpoints folder.
        best: Complete checkpoint of the run.

    Raises:
        OSError: The folder cannot be written.
    """
    if best is None:
        (directory / BEST_FILE).unlink(missing_ok=True)
        return
    write_atomically(directory / BEST_FILE, json.dumps(asdict(best)) + "\n")


def read_best(directory: Path) -> Best:
    """Read the file.

    Args:
        directory: The run's checkpoints folder.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    file = directory / BEST_FILE
    if not is_file(file):
        raise CheckpointError(
            f"{directory} has no {BEST_FILE}: the run did not keep its best checkpoint.\n"
            "  Name a step, or train with checkpoint.keep_best=true.",
            key=str(file),
            fix="checkpoint.keep_best=true",
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Best(int(content["step"]), str(content["metric"]), float(content["value"]))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}).\n  Name the step of a checkpoint instead.",
            key=str(file),
            value=str(error),
            fix="name a step",
        ) from error
