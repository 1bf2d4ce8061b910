"""Provenance of each attempt of a run: ``provenance.json`` in its folder."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import glm_dist
from glm_dist.config.migrations import PROVENANCE_FILE as PROVENANCE_FILE
from glm_dist.errors import ConfigError
from glm_dist.files import exists

DISTRIBUTIONS = ("torch", "deepspeed", "megatron-core", "hydra-core", "omegaconf", "numpy")
"""Packages whose versions affect results, in addition to glm_dist itself."""

GIT_TIMEOUT_SECONDS = 10

COMMIT_FILE = "glm_dist.commit"
"""Beside the package in an image, which has no .git: its commit, and `modified` if it was."""

JOB_VARIABLES = (
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
)
"""Variables of the batch system that name a job and its start."""


@dataclass(frozen=True)
class Provenance:
    """Code, versions and hardware of one attempt."""

    started: str
    """UTC, ISO 8601."""
    commit: str | None
    """Commit of the checkout or image that the package runs from; None if it is neither."""
    is_dirty: bool | None
    """True if tracked files were modified."""
    versions: dict[str, str | None]
    hosts: list[str]
    world_size: int
    layout: dict[str, int]
    command: list[str]
    launcher: str
    job: dict[str, str] = field(default_factory=dict)
    """The batch system's name of the job and its restarts; empty outside one."""
    hardware: dict[str, str | None] = field(default_factory=dict)
    """GPU of rank 0, its driver, and NCCL's version; empty on CPUs."""


def collect_provenance(
    *,
    hosts: Sequence[str],
    world_size: int,
    layout: Mapping[str, int],
    command: Sequence[str],
    launcher: str,
    hardware: Mapping[str, str | None] | None = None,
) -> Provenance:
    """Collect code, versions and hardware of this attempt.

    Args:
        hosts: Name of each rank's host; repeated names are listed once.
        world_size: Processes.
        layout: Sizes of the process axes.
        command: Command line, argument by argument.
        launcher: Launcher that started the processes.
        hardware: See ``Provenance``.
    """
    commit, is_dirty = source_commit(Path(glm_dist.__file__).resolve().parent)
    return Provenance(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit,
        is_dirty=is_dirty,
        versions=library_versions(),
        hosts=list(dict.fromkeys(hosts)),
        world_size=world_size,
        layout=dict(layout),
        command=list(command),
        launcher=launcher,
        job={name: os.environ[name] for name in JOB_VARIABLES if name in os.environ},
        hardware=dict(hardware or {}),
    )


def source_commit(package: Path) -> tuple[str | None, bool | None]:
    """Return the commit of a package's source, and whether it was modified; None where unknown.

    Args:
        package: Its folder.
    """
    commit = _git(package, "rev-parse", "HEAD") if _is_tracked(package) else None
    if commit:
        changes = _git(package, "status", "--porcelain", "--untracked-files=no")
        return commit, None if changes is None else bool(changes)
    try:
        words = (package.parent / COMMIT_FILE).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None, None
    return (words[0], "modified" in words) if words else (None, None)


def version_line() -> str:
    """Describe the program: its version, and the commit of its source if that is known."""
    commit, is_dirty = source_commit(Path(glm_dist.__file__).resolve().parent)
    of = f" (commit {commit}{', modified' if is_dirty else ''})" if commit else ""
    return f"glm-dist {glm_dist.__version__}{of}"


def library_versions() -> dict[str, str | None]:
    """Return the version of each library that affects results; None where it is not installed."""
    return {
        "python": platform.python_version(),
        "glm_dist": glm_dist.__version__,
        **{name: _version(name) for name in DISTRIBUTIONS},
    }


def count_attempts(folder: Path) -> int:
    """Return the starts of a run so far.

    Args:
        folder: The run folder; may be missing.

    Raises:
        ConfigError: Their list is damaged.
    """
    return len(read_attempts(folder / PROVENANCE_FILE))


def read_attempts(path: Path) -> list[dict[str, object]]:
    """Return the provenance of each attempt, in order.

    Args:
        path: ``provenance.json``; may be missing.

    Raises:
        ConfigError: It is damaged.
    """
    if not exists(path):
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["attempts"])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}).\n  Remove it; attempts are then counted from 1 again.",
            key=str(path),
            value=str(error),
            fix=f"rm {path}",
        ) from error


def last_provenance(folder: Path) -> dict[str, object]:
    """Return the provenance of the attempt in progress; empty if there is none.

    Args:
        folder: The run folder.
    """
    try:
        attempts = read_attempts(folder / PROVENANCE_FILE)
    except ConfigError:
        return {}
    return attempts[-1] if attempts else {}


def _is_tracked(source: Path) -> bool:
    """Return True if the package is under version control, not just installed inside a checkout."""
    return _git(source, "ls-files", "--error-unmatch", "__init__.py") is not None


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's output; None if it fails or is not installed."""
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
