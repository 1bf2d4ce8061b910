"""Going back to an earlier checkpoint of the same run (``checkpoint.step``); no torch, no ranks.

The checkpoints after it are set aside by name, never removed. A job that went back notes so in its
own checkpoints: when the same command is started again, after a preemption, it continues from them
instead of going back a second time.
"""

from collections.abc import Sequence
from pathlib import Path

from glm_dist.checkpoint.folders import REWOUND, list_set_aside, list_steps, set_aside
from glm_dist.checkpoint.manifest import DamagedCheckpointError, read_manifest
from glm_dist.errors import CheckpointError

REWOUND_TO = "rewound_to"
"""Name in a manifest's ``extra``: ``checkpoint.step`` of the job that saved it."""


def list_candidates(directory: Path, step: int | None) -> list[tuple[int, Path]]:
    """List the checkpoints that a run may continue from, newest first.

    Args:
        directory: The run's checkpoints folder.
        step: ``checkpoint.step``; None: any checkpoint.

    Returns:
        Steps and folders. With a step: that one alone, or it and those that were saved after the
        run went back to it.

    Raises:
        CheckpointError: There is no checkpoint of that step.
    """
    steps = list_steps(directory)
    if step is None:
        return steps
    later = [(number, path) for number, path in steps if number >= step]
    if _was_saved_after(later, step):
        return later
    chosen = [(number, path) for number, path in steps if number == step]
    if chosen:
        return chosen
    there = ", ".join(str(number) for number, _ in steps) or "none"
    aside = list_set_aside(directory, REWOUND)
    raise CheckpointError(
        f"checkpoint.step={step}, but {directory} has no such checkpoint; there are: {there}"
        f"{'; set aside: ' if aside else ''}{', '.join(aside)}.\n"
        "  Name one of these, or leave checkpoint.step out for the newest.",
        key="checkpoint.step",
        value=step,
        fix="checkpoint.step=null",
    )


def set_later_aside(directory: Path, step: int) -> list[Path]:
    """Rename the checkpoints after a step, newest first, so that a crash leaves no gap among them.

    Args:
        directory: The run's checkpoints folder.
        step: Step that the run has gone back to.

    Returns:
        Their new paths.

    Raises:
        CheckpointError: A folder cannot be renamed; the next start would use it.
    """
    moved = []
    for number, path in list_steps(directory):
        if number <= step:
            break
        aside = set_aside(path, REWOUND, reason=f"the run goes back to step {step}")
        if aside is None:
            raise CheckpointError(
                f"{path} cannot be renamed, so the run cannot go back to step {step}.\n"
                "  Move it out of the folder, and start again.",
                key=str(path),
                value=step,
                fix=f"mv {path} <elsewhere>",
            )
        moved.append(aside)
    return moved


def _was_saved_after(steps: Sequence[tuple[int, Path]], step: int) -> bool:
    """Return True if the newest readable checkpoint is of a job that went back to this step."""
    for _, path in steps:
        try:
            return read_manifest(path).extra.get(REWOUND_TO) == step
        except DamagedCheckpointError:
            continue
    return False
