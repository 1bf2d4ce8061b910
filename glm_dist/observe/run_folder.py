"""Folder of a run, with the provenance of each attempt.

``config.yaml`` (resolved), ``overrides.txt``, ``provenance.json`` (one entry per attempt),
``metrics.jsonl``, ``log/``, ``heartbeat/`` (each rank's newest report), ``checkpoints/``,
``tokenizer/`` (a copy of its files). An attempt is
one start of the run; resuming is the next attempt in the same folder. ``lock`` keeps out a second
job while one is running.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from glm_dist.errors import EXIT_STOPPED, ConfigError, LaunchError
from glm_dist.files import NO_ROOM, LockedError, exists, lock_file, write_atomically
from glm_dist.observe.fence import LOCK_FILE as LOCK_FILE
from glm_dist.observe.fence import Fence, claim
from glm_dist.observe.provenance import PROVENANCE_FILE as PROVENANCE_FILE
from glm_dist.observe.provenance import Provenance as Provenance
from glm_dist.observe.provenance import collect_provenance as collect_provenance
from glm_dist.observe.provenance import count_attempts, read_attempts
from glm_dist.observe.provenance import library_versions as library_versions

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
OVERRIDES_FILE = "overrides.txt"
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints inside a run folder."""
HEARTBEATS = "heartbeat"
"""Folder of the ranks' newest reports, for the watchdog, inside a run folder."""

OWN_LOCK_SECONDS = 60.0
"""Longest wait for the lock of an earlier attempt of the same job."""


@dataclass(frozen=True)
class RunFolder:
    """An open run folder."""

    path: Path
    attempt: int
    """Starts of this run so far, this one included."""
    lock: IO[str] | None = field(repr=False)
    """Keeps out other jobs until it is closed or its process ends; None if the file system has no
    locks."""
    fence: Fence
    """This attempt's claim on the folder."""


def open_run_folder(
    path: Path, *, config: str, overrides: Sequence[str], provenance: Provenance
) -> RunFolder:
    """Lock a run's folder and begin its next attempt; see the two functions it calls."""
    folder = lock_run_folder(path)
    begin_attempt(folder, config=config, overrides=overrides, provenance=provenance)
    return folder


def lock_run_folder(path: Path) -> RunFolder:
    """Create a run's folder, or reopen it for its next attempt; on rank 0 only.

    The attempt does not count until ``begin_attempt``: the job may still be refused.

    Args:
        path: The folder.

    Raises:
        ConfigError: The folder cannot be created or written.
        LaunchError: Another job is running in it.
    """
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)
        job = batch_job(os.environ)
        lock = _lock(path / LOCK_FILE, job)
        attempt = count_attempts(path) + 1
        fence = claim(path, attempt=attempt, lock=lock, job=job)
    return RunFolder(path=path, attempt=attempt, lock=lock, fence=fence)


def begin_attempt(
    folder: RunFolder, *, config: str, overrides: Sequence[str], provenance: Provenance
) -> None:
    """Count the attempt and write its configuration and provenance; on rank 0 only.

    A configuration that differs from the last attempt's replaces it; the older one is kept as
    ``config.attempt_N.yaml``.

    Args:
        folder: Locked by this process.
        config: Resolved configuration, YAML.
        overrides: Overrides on the command line.
        provenance: Code, versions and hardware of this attempt.

    Raises:
        ConfigError: The folder cannot be written.
    """
    path = folder.path
    with _explained(path):
        attempts = read_attempts(path / PROVENANCE_FILE)
        _keep_older_config(path, config, attempt=len(attempts))
        write_atomically(path / CONFIG_FILE, config)
        write_atomically(path / OVERRIDES_FILE, "".join(f"{line}\n" for line in overrides))
        attempts.append(asdict(provenance))
        write_atomically(
            path / PROVENANCE_FILE, json.dumps({"attempts": attempts}, indent=1) + "\n"
        )


def batch_job(environ: Mapping[str, str]) -> str:
    """Return this job's name in the lock file; empty outside a batch system.

    Args:
        environ: Environment of the process.
    """
    job = environ.get("SLURM_JOB_ID", "")
    return f"job {job}" if job else ""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one for the user.

    Raises:
        ConfigError: The folder cannot be created or written.
    """
    try:
        yield
    except OSError as error:
        remedy = "Free space there" if error.errno in NO_ROOM else "Make it writable"
        raise ConfigError(
            f"The run folder {path} cannot be created or written ({error.strerror or error}).\n"
            f"  {remedy}, or set paths.runs to another folder.",
            key="paths.runs",
            value=str(path),
            fix="paths.runs=<folder>",
        ) from error


def _lock(path: Path, job: str) -> IO[str] | None:
    """Lock the folder for this process: two jobs would remove each other's saves.

    An earlier attempt of the same job may still end on a host that was cut off, or a network file
    system may hold a dead process's lock for a minute: that is waited for.

    Args:
        path: The lock file.
        job: This job in the batch system; empty: none.

    Raises:
        LaunchError: Another process holds the lock.
        OSError: The file cannot be written.
    """
    deadline, pause = time.monotonic() + OWN_LOCK_SECONDS, 1.0
    while True:
        try:
            return lock_file(path)
        except LockedError as error:
            is_own = bool(job) and error.holder.endswith(f", {job}")
            if not is_own or time.monotonic() + pause > deadline:
                raise _locked(path, error.holder, is_own=is_own) from error
            log.warning("waiting for an earlier attempt of this job (%s)", error.holder)
        time.sleep(pause)
        pause *= 2


def _locked(path: Path, holder: str, *, is_own: bool) -> LaunchError:
    if is_own:
        error = LaunchError(
            f"An earlier attempt of this job still holds {path} ({holder}).\n"
            "  The job may be started again in a minute. If that host is gone and the file system"
            f" still holds the lock, remove {path}.",
            key=str(path.parent),
            value=holder,
            fix="start the job again",
        )
        error.status = EXIT_STOPPED  # nothing is wrong, and nothing lost
        return error
    return LaunchError(
        f"Another job is running in {path.parent} ({holder}).\n"
        "  Wait until it has ended, stop it, or set another run.name. If its host is gone and"
        " the file"
        f" system still holds the lock, remove {path}.",
        key=str(path.parent),
        value=holder,
        fix="run.name=<new>",
    )


def _keep_older_config(path: Path, config: str, *, attempt: int) -> None:
    current = path / CONFIG_FILE
    if not exists(current):
        return
    earlier = current.read_text(encoding="utf-8")
    if earlier == config:
        return
    older = path / f"config.attempt_{attempt}.yaml"
    # A copy: after a move and a failed write the run would have no configuration.
    write_atomically(older, earlier)
    log.warning("configuration changed since attempt=%d kept=%s", attempt, older)
