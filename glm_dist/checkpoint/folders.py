"""Folder names of checkpoints, and renames between them; no torch, no ranks.

==================  ===========================================================
``step_0001000``    complete; the only name a finished save leaves
``.tmp-step_...``   being written; removed by the next save
``.old-step_...``   complete, being replaced by a new save of the same step
``.trash-step_...`` being removed; renamed first, so that a partial folder is no checkpoint
==================  ===========================================================
"""

import logging
import re
import shutil
from pathlib import Path

from glm_dist.files import fsync_folder, is_dir

log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
"""File of a checkpoint that is written last."""

_STEP = re.compile(r"(?:\.old-)?step_(\d{7,})")


def step_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step_{step:07d}"


def step_of(path: Path) -> int | None:
    """Return the step in the name of a checkpoint's folder; None if it has another name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def list_steps(directory: Path) -> list[tuple[int, Path]]:
    """List the folders that may be checkpoints, newest first; none if there is no directory.

    A folder that is being replaced comes after its replacement.
    """
    if not is_dir(directory):
        return []
    found = []
    for path in directory.iterdir():
        step = step_of(path)
        if step is not None and path.is_dir():
            found.append((step, path))
    return sorted(found, key=lambda pair: (pair[0], not pair[1].name.startswith(".")), reverse=True)


def create_staging(directory: Path, step: int) -> Path:
    """Remove leftovers of interrupted saves and create the folder for the next save.

    Raises:
        OSError: The directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(directory)
    attempt = 1
    while (staging := directory / f".tmp-{step_name(step)}-{attempt}").exists():
        attempt += 1
    staging.mkdir()
    return staging


def publish(staging: Path, final: Path) -> None:
    """Rename a finished folder durably; an older folder of that name is replaced.

    After a crash at any point either the old or the new folder is found.

    Raises:
        OSError: A rename failed.
    """
    old = final.with_name(f".old-{final.name}")
    replaces = final.exists()
    if replaces:
        final.rename(old)
    staging.rename(final)
    fsync_folder(final.parent)
    if replaces:
        remove(old)


def retire(directory: Path, step: int, *, keep_last: int) -> list[Path]:
    """Remove checkpoints older than the newest ``keep_last`` up to ``step``.

    Later steps (of a run that was rewound) are kept. A folder that cannot be removed only causes a
    warning.

    Returns:
        The checkpoints removed.
    """
    steps = [path for number, path in list_steps(directory) if number <= step]
    victims = steps[keep_last:]
    for path in victims:
        remove(path)
    return victims


def remove(path: Path) -> None:
    """Rename a folder to trash, then delete it; failures are logged."""
    trash = path.with_name(f".trash-{path.name.lstrip('.')}")
    try:
        if trash.exists():
            shutil.rmtree(trash)
        path.rename(trash)
        shutil.rmtree(trash)
    except OSError as error:
        log.warning("could not remove checkpoint path=%s reason=%s", path, error)


def _clear_leftovers(directory: Path) -> None:
    for path in sorted(directory.iterdir()):
        if path.name.startswith((".tmp-", ".trash-")):
            try:
                shutil.rmtree(path)
            except OSError as error:
                log.warning("could not remove leftover path=%s reason=%s", path, error)
        elif path.name.startswith(".old-step_"):
            final = path.with_name(path.name.removeprefix(".old-"))
            if final.exists():
                remove(path)
            else:
                path.rename(final)
