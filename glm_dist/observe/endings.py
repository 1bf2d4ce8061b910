"""Endings of a run, as files in its folder: ``finished`` and ``stopped``.

Scripts read them where a launcher hides the program's exit status: torchrun turns every status into
1. Rank 0 writes them, each in one move. A start removes what is no longer true.
"""

import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from glm_dist.files import exists, write_atomically

log = logging.getLogger(__name__)

FINISHED_FILE = "finished"
STOPPED_FILE = "stopped"


@dataclass(frozen=True)
class Stopped:
    """An end before the last step: on request, or by a failure that needs a human."""

    step: int | None
    """Steps done; None after a failure, and after a stop before training."""
    attempt: int
    """Start of the run that ended so."""
    reason: str
    saved: bool
    """True if a checkpoint holds the last step."""
    status: int
    """Exit status of the program."""


def write_finished(folder: Path, *, step: int, attempt: int) -> None:
    """Note that the run has reached its last step.

    Args:
        folder: The run folder.
        step: The last step.
        attempt: Start of the run that reached it.
    """
    if finished_step(folder) == step:
        return  # an earlier attempt's, whose time is the true one
    time = datetime.now(UTC).isoformat(timespec="seconds")
    _write(folder / FINISHED_FILE, {"step": step, "attempt": attempt, "time": time})


def write_stopped(folder: Path, stopped: Stopped) -> None:
    """Note that the run ended before its last step."""
    _write(folder / STOPPED_FILE, asdict(stopped))


def read_stopped(folder: Path) -> Stopped | None:
    """Return the marker of a run that ended before its last step; None if there is no sound one.

    Args:
        folder: The run folder.
    """
    file = folder / STOPPED_FILE
    try:
        return Stopped(**json.loads(file.read_text(encoding="utf-8"))) if exists(file) else None
    except (OSError, ValueError, TypeError):
        return None


def remove_endings(folder: Path, *, last_step: int) -> None:
    """Remove the endings that a start makes untrue; on rank 0, with the folder locked.

    Args:
        folder: The run folder.
        last_step: ``run.steps``; above that of ``finished``, the run goes on.
    """
    (folder / STOPPED_FILE).unlink(missing_ok=True)
    step = finished_step(folder)
    if step is None or step < last_step:
        (folder / FINISHED_FILE).unlink(missing_ok=True)


def finished_step(folder: Path) -> int | None:
    """Return the step in ``finished``; None if there is no such file or it is damaged.

    Args:
        folder: The run folder.
    """
    file = folder / FINISHED_FILE
    if not exists(file):
        return None
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["step"])
    except (ValueError, TypeError, KeyError):
        return None


def _write(file: Path, content: dict[str, object]) -> None:
    """Write a marker; a full disk must not turn a good ending into a failure."""
    try:
        write_atomically(file, json.dumps(content) + "\n")
    except OSError as error:
        log.warning("could not write %s (%s)", file, error.strerror or error)
