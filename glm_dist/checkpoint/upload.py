"""Upload of finished checkpoints, in a thread of rank 0, without collectives.

A checkpoint is complete on the disk before its upload begins, and training neither waits for one
nor ends because of one. One upload runs at a time; if several checkpoints are finished meanwhile,
the newest is next. Retention leaves the folder of an upload alone until it has ended.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from glm_dist.checkpoint.background import yield_to_training
from glm_dist.checkpoint.folders import FEWEST_KEPT, MANIFEST_NAME, step_name, step_of
from glm_dist.checkpoint.manifest import DamagedCheckpointError, read_manifest
from glm_dist.checkpoint.remote import (
    CONFIG,
    LATEST,
    REWOUND_MANIFEST,
    MissingObjectError,
    RemoteStore,
    StoreError,
    without_secrets,
)
from glm_dist.checkpoint.remote_steps import check_remote
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.errors import CheckpointError

log = logging.getLogger(__name__)

LOCK = "lock.json"


@dataclass(frozen=True)
class Claim:
    """One job's claim on a run's folder on a store."""

    store: RemoteStore
    content: bytes
    """Content of ``lock.json`` while the claim holds."""

    def check(self) -> None:
        """Check that no other job has claimed the folder since.

        Raises:
            SupersededError: One has.
            StoreError: The store does not answer.
        """
        try:
            found = self.store.read(LOCK)
        except MissingObjectError:
            found = b""
        if found == self.content:
            return
        owner = found.decode(errors="replace").strip() or "nobody: it was deleted"
        raise SupersededError(
            f"{self.store.url}/{LOCK} belongs to {owner[:300]}. This job uploads nothing more.\n"
            "  Leave the URL to that job, or stop it and start this run again.",
            key=f"{self.store.url}/{LOCK}",
            value=owner,
            fix="leave the URL to the other job",
        )


class SupersededError(StoreError):
    """Error for a job whose folder on a store was claimed by a later one."""


def claim_store(store: RemoteStore, *, attempt: int, config: str) -> Claim:
    """Claim a run's folder for this job, and keep its configuration there.

    Args:
        store: The folder.
        attempt: Number of this start of the run, as the run folder counts it; a lost run folder
            counts from 1 again, so the claim also has a random id.
        config: Resolved configuration, YAML.

    Raises:
        StoreError: It cannot be written.
    """
    owner = {
        "attempt": attempt,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "id": uuid.uuid4().hex,
    }
    content = (json.dumps(owner) + "\n").encode()
    store.write(LOCK, content)
    store.write(CONFIG, config.encode())
    return Claim(store, content)


@dataclass(frozen=True)
class UploadOutcome:
    """Outcome of one upload."""

    step: int
    url: str
    seconds: float
    num_bytes: int = 0
    error: str = ""
    """Empty if the upload is complete and verified."""


@dataclass
class _Upload:
    path: Path
    started: float
    is_reported: bool = False
    """True if it is overdue and that was reported."""


@dataclass
class Uploader:
    """Uploads one job's checkpoints; on rank 0 only."""

    claim: Claim
    upkeep: Upkeep
    keep_last: int
    timeout: float
    """Seconds after which an upload counts as failed. It is not interrupted."""
    _verified: set[int] = field(default_factory=set)
    """Remote steps whose objects this job has hashed."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _current: _Upload | None = None
    _next: Path | None = None
    _outcomes: list[UploadOutcome] = field(default_factory=list)
    _is_superseded: bool = False

    @property
    def is_busy(self) -> bool:
        """True while an upload runs or is to begin, unless it is overdue."""
        with self._lock:
            self._look_at_clock()
            current = self._current
            return current is not None and not current.is_reported

    def offer(self, path: Path) -> None:
        """Upload a finished checkpoint, as soon as the upload in progress has ended.

        Args:
            path: Its folder. An older one that still waits is given up.
        """
        with self._lock:
            if self._is_superseded:
                return
            if self._next is not None:
                self.upkeep.uploading.discard(self._next.name)
            self._next = path
            self.upkeep.uploading.add(path.name)
            if self._current is not None:
                return
            self._current = self._take()
        # A store that never answers must not keep the process.
        threading.Thread(target=self._run, name="upload", daemon=True).start()

    def outcomes(self) -> list[UploadOutcome]:
        """Return the outcomes since the last call."""
        with self._lock:
            self._look_at_clock()
            found, self._outcomes = self._outcomes, []
            return found

    def _look_at_clock(self) -> None:
        current = self._current
        if current is None or current.is_reported:
            return
        seconds = time.monotonic() - current.started
        if seconds > self.timeout:
            current.is_reported = True
            reason = (
                f"it did not end within {self.timeout / 60:g} minutes; if the store is only slow,"
                " raise checkpoint.timeout_minutes"
            )
            self._outcomes.append(self._outcome(current, error=reason))

    def _take(self) -> _Upload:
        assert self._next is not None
        path, self._next = self._next, None
        return _Upload(path, time.monotonic())

    def _run(self) -> None:
        """Body of the thread: upload until nothing waits."""
        yield_to_training()
        current = self._current
        while current is not None:
            outcome = self._upload(current)
            with self._lock:
                self.upkeep.uploading.discard(current.path.name)
                if outcome is not None and not (outcome.error and current.is_reported):
                    self._outcomes.append(outcome)
                if self._next is not None and self._is_superseded:
                    self.upkeep.uploading.discard(self._next.name)
                    self._next = None
                self._current = current = None if self._next is None else self._take()

    def _upload(self, upload: _Upload) -> UploadOutcome | None:
        """Upload one checkpoint and remove older ones.

        Returns:
            None if its folder has gone, or the store had it already.
        """
        step = step_of(upload.path)
        assert step is not None
        try:
            num_bytes = upload_checkpoint(self.claim.store, upload.path, check=self.claim.check)
            if num_bytes == 0:
                return None
            self._verified.add(step)
            outcome = self._outcome(upload, num_bytes=num_bytes)
            self._retire(step)
        except SupersededError as error:
            self._is_superseded = True
            return self._outcome(upload, error=str(error))
        except (CheckpointError, OSError) as error:
            if not upload.path.is_dir():
                log.info("gave up an upload: path=%s was removed or renamed", upload.path)
                return None
            return self._outcome(upload, error=without_secrets(str(error)))
        return outcome

    def _retire(self, step: int) -> None:
        try:
            removed = retire_remote(
                self.claim.store,
                step=step,
                keep=max(self.keep_last, FEWEST_KEPT),
                stays=self.upkeep.stays,
                verified=self._verified,
                check=self.claim.check,
            )
        except SupersededError:
            raise
        except StoreError as error:
            log.warning("could not remove older checkpoints url=%s reason=%s", error.key, error)
            return
        if removed:
            names = ",".join(step_name(number) for number in removed)
            log.info("removed checkpoints url=%s names=%s", self.claim.store.url, names)

    def _outcome(self, upload: _Upload, *, num_bytes: int = 0, error: str = "") -> UploadOutcome:
        step = step_of(upload.path)
        assert step is not None
        return UploadOutcome(
            step,
            f"{self.claim.store.url}/{step_name(step)}",
            time.monotonic() - upload.started,
            num_bytes,
            error,
        )


def upload_checkpoint(store: RemoteStore, folder: Path, *, check: Callable[[], None]) -> int:
    """Copy a complete checkpoint to a store, the manifest last.

    Args:
        store: The run's folder there.
        folder: ``step_XXXXXXX``, verified by the save that published it.
        check: Raises if the store's folder belongs to another job.

    Returns:
        Bytes uploaded; 0 if the store had it already.

    Raises:
        StoreError: An object could not be written, or holds something else than the file.
    """
    manifest = read_manifest(folder)
    name, content = step_name(manifest.step), (folder / MANIFEST_NAME).read_bytes()
    check()
    if not _is_there(store, f"{name}/{MANIFEST_NAME}", content):
        store.remove(manifest.step)  # what an interrupted upload or an older save has left
        for file, record in sorted(manifest.files.items()):
            store.put(
                folder / file,
                f"{name}/{file}",
                num_bytes=record.num_bytes,
                sha256=record.sha256,
            )
        check()
        store.write(f"{name}/{MANIFEST_NAME}", content)
        num_bytes = len(content) + sum(record.num_bytes for record in manifest.files.values())
    else:
        num_bytes = 0
    latest = json.dumps({"step": manifest.step, "path": name}) + "\n"
    if not _is_there(store, LATEST, latest.encode()):
        store.write(LATEST, latest.encode())
    return num_bytes


def _is_there(store: RemoteStore, name: str, content: bytes) -> bool:
    try:
        return store.read(name) == content
    except MissingObjectError:
        return False


def retire_remote(
    store: RemoteStore,
    *,
    step: int,
    keep: int,
    stays: Callable[[int], bool],
    verified: set[int],
    check: Callable[[], None],
) -> list[int]:
    """Remove old checkpoints and what interrupted uploads have left, by the rule of local ones.

    Args:
        store: The run's folder there.
        step: Step that was just uploaded; later ones are neither counted nor removed.
        keep: Newest verified checkpoints to keep.
        stays: Returns True for a step that stays whatever its age.
        verified: Steps that this job has hashed on the store; more are added.
        check: Raises if the store's folder belongs to another job.

    Returns:
        Steps removed.

    Raises:
        StoreError: The store does not answer.
    """
    complete, incomplete = store.steps()
    counted, damaged = 0, set()
    steps = [number for number in complete if number <= step]
    victims: list[int] = []
    for position, number in enumerate(steps):
        if counted >= keep:
            victims = [old for old in steps[position:] if not stays(old)]
            break
        if number not in verified and any(not stays(old) for old in steps[position + 1 :]):
            try:
                check_remote(store, number)
                verified.add(number)
            except DamagedCheckpointError as error:
                damaged.add(number)
                log.warning("damaged checkpoint url=%s reason=%s", error.key, error.value)
        counted += number in verified
    leftovers = [
        number
        for number in incomplete
        if number < step and REWOUND_MANIFEST not in store.names(number)
    ]
    if victims or leftovers:
        check()
    for number in victims + leftovers:
        store.remove(number)
    verified.difference_update(victims)
    return victims
