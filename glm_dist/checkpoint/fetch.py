"""Download of a checkpoint from a store that has a newer one than the run's folder.

A checkpoint is fetched into a staging folder, verified by its own manifest, and renamed: from then
on it is a local one. If it is damaged, the next older one is fetched.
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from glm_dist.checkpoint.folders import (
    BAD,
    MANIFEST_NAME,
    publish,
    set_aside,
    step_name,
)
from glm_dist.checkpoint.manifest import (
    DamagedCheckpointError,
    all_damaged,
    damage_error,
    find_problems,
    read_manifest,
)
from glm_dist.checkpoint.remote import RemoteStore
from glm_dist.checkpoint.remote_steps import check_remote, list_newer
from glm_dist.files import fsync_folder
from glm_dist.parallel.errors import Ranks

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
"""Interval of the exchanges while ranks wait for the download."""


def fetch_newer(
    store: RemoteStore | None,
    directory: Path,
    *,
    local: int | None,
    step: int | None,
    begin: Callable[[int], Path],
    timeout: float,
    turn: Callable[[], None] = lambda: None,
) -> Path | None:
    """Fetch the newest complete checkpoint of a store; collective over all ranks.

    Args:
        store: The run's folder there, on rank 0; None elsewhere.
        directory: The run's checkpoints folder.
        local: See ``list_newer``.
        step: See ``list_newer``.
        begin: Creates the staging folder for a step.
        timeout: Seconds that it may take.
        turn: Called at each exchange, so that a watchdog sees that nobody hangs.

    Returns:
        Its local folder, verified and renamed; None if the store has none to take.

    Raises:
        CheckpointError: On every rank: the store or the disk failed, or all checkpoints are
            damaged.
    """
    ranks = Ranks(None)
    task = None
    if ranks.rank == 0:
        assert store is not None
        task = _Task(lambda: _fetch(store, directory, local, step, begin), store, timeout)
    while not all(ranks.gather(task is None or task.has_ended(POLL_SECONDS))):
        turn()  # short waits: no collective lasts as long as a download
    return ranks.on_first(
        "fetch a checkpoint", str(directory), lambda: task.result() if task is not None else None
    )


class _Task:
    """A download in a thread; a store that never answers keeps neither ranks nor the process."""

    def __init__(
        self, action: Callable[[], Path | None], store: RemoteStore, timeout: float
    ) -> None:
        self._action = action
        self._store = store
        self._ends = time.monotonic() + timeout
        self._timeout = timeout
        self._found: Path | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with _Kept(self):
            self._found = self._action()

    def keep(self, error: Exception) -> None:
        """Keep the error of the thread for the rank that waits."""
        self._error = error

    def has_ended(self, seconds: float) -> bool:
        """Wait a little; return True if it has ended or is overdue."""
        self._thread.join(seconds)
        return not self._thread.is_alive() or time.monotonic() > self._ends

    def result(self) -> Path | None:
        """Return the folder, or raise what the thread has met."""
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise self._store.error(
                "fetch", "", f"it did not end within {self._timeout / 60:g} minutes"
            )
        return self._found


class _Kept:
    """Context that keeps an exception of the thread."""

    def __init__(self, task: _Task) -> None:
        self._task = task

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self._task.keep(error)
        return True


def _fetch(
    store: RemoteStore,
    directory: Path,
    local: int | None,
    step: int | None,
    begin: Callable[[int], Path],
) -> Path | None:
    damaged = []
    for number in list_newer(store, local=local, step=step):
        try:
            return _fetch_one(store, directory, number, begin)
        except DamagedCheckpointError as error:
            damaged.append(step_name(number))
            log.warning("skipped damaged checkpoint url=%s reason=%s", error.key, error.value)
    if damaged and local is None:
        raise all_damaged(store.url, damaged, fix="set checkpoint.url=null to do without them")
    return None


def _fetch_one(
    store: RemoteStore, directory: Path, step: int, begin: Callable[[int], Path]
) -> Path:
    started = time.monotonic()
    name = step_name(step)
    manifest = check_remote(store, step, read_content=False)
    staging = begin(step)
    try:
        for file in [*sorted(manifest.files), MANIFEST_NAME]:
            store.get(f"{name}/{file}", staging / file)
            _sync(staging / file)
        problems = find_problems(staging, manifest.files, read_content=True)
        if problems:
            raise damage_error(f"{store.url}/{name}", problems)
        read_manifest(staging)
        fsync_folder(staging)
        final = directory / name
        if final.exists():  # it was found damaged
            set_aside(final, BAD, reason="replaced from checkpoint.url")
        publish(staging, final)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    log.info(
        "fetched step=%d from=%s/%s seconds=%.1f", step, store.url, name, time.monotonic() - started
    )
    return final


def _sync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
