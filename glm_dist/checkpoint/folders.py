"""Folder names of checkpoints, and renames between them; no torch, no ranks.

=====================  ===========================================================
``step_0001000``       complete; the only name a finished save leaves
``.tmp-step_...-3``    being written by attempt 3; removed by the next save
``.old-step_...``      complete, being replaced by a new save of the same step
``.trash-step_...``    being removed; renamed first, so that a partial folder is no checkpoint
``.bad-step_...``      found damaged and set aside; never read, counted or removed
``.rewound-step_...``  later than a step that the run went back to; the same
=====================  ===========================================================
"""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from glm_dist.files import fsync_folder, is_dir

log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
"""File of a checkpoint that is written last."""

FEWEST_KEPT = 2
"""Verified checkpoints that always stay: the newest may hold weights that have begun to diverge."""

BAD = ".bad-"
"""Prefix of damaged checkpoints that were set aside."""

REWOUND = ".rewound-"
"""Prefix of checkpoints that were set aside because the run went back to an earlier one."""

_STAGING = re.compile(r"\.tmp-step_\d+-(\d+)")
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


def damaged_names(directory: Path) -> list[str]:
    """List the checkpoints of a folder in which none is complete, with those set aside."""
    return [path.name for _, path in list_steps(directory)] + list_set_aside(directory, BAD)


def create_staging(
    directory: Path,
    step: int,
    *,
    attempt: int = 1,
    clears: Callable[[int], bool] = lambda _: True,
    parents: bool = True,
) -> Path:
    """Remove leftovers of interrupted saves and create the folder for the next save.

    Args:
        directory: The run's checkpoints folder; created if it does not exist.
        step: Step to be saved.
        attempt: Number of this start of the run, part of the folder's name.
        clears: Returns True if what an attempt has left may be removed: it is not alive.
        parents: Create the run folder above as well; False for a job that has opened it, since it
            may have been removed.

    Raises:
        OSError: The directory cannot be written.
    """
    directory.mkdir(parents=parents, exist_ok=True)
    _clear_leftovers(directory, clears)
    name = f".tmp-{step_name(step)}-{attempt}"
    staging, number = directory / name, 1
    while staging.exists():
        number += 1
        staging = directory / f"{name}.{number}"
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


def set_aside(path: Path, prefix: str, *, reason: str) -> Path | None:
    """Rename a checkpoint so that it is neither counted nor resumed from; its files stay.

    Args:
        path: Its folder.
        prefix: ``BAD`` or ``REWOUND``.
        reason: Logged with the old and the new name.

    Returns:
        The new path; None, with a warning in the log, if the rename failed.
    """
    name = f"{prefix}{path.name.lstrip('.')}"
    number = 1
    while (aside := path.with_name(name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
        fsync_folder(path.parent)
    except OSError as error:
        log.warning("could not set aside checkpoint path=%s reason=%s", path, error)
        return None
    log.warning("set aside checkpoint path=%s as=%s reason=%s", path, aside.name, reason)
    return aside


def list_set_aside(directory: Path, prefix: str) -> list[str]:
    """List the names of checkpoints that were set aside, newest first."""
    if not is_dir(directory):
        return []
    names = [path.name for path in directory.iterdir()]
    return sorted((name for name in names if name.startswith(f"{prefix}step_")), reverse=True)


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


def _clear_leftovers(directory: Path, clears: Callable[[int], bool]) -> None:
    for path in sorted(directory.iterdir()):
        staged = _STAGING.match(path.name)
        if staged and not clears(int(staged[1])):
            continue
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
