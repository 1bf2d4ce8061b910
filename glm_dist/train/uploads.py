"""The store of a run (``checkpoint.url``) in a job: where it starts from, and what it uploads.

Rank 0 alone talks to the store. The other ranks only wait with it, by short exchanges, so a slow
store breaks no collective.
"""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from glm_dist.checkpoint.fetch import fetch_newer
from glm_dist.checkpoint.remote import RemoteStore, open_store
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.checkpoint.upload import Uploader, UploadOutcome, claim_store
from glm_dist.config.load import dump_config
from glm_dist.config.schema import RunConfig
from glm_dist.observe.phases import RECORD
from glm_dist.observe.run_folder import RunFolder
from glm_dist.observe.sinks import MetricSink
from glm_dist.parallel.errors import Ranks
from glm_dist.train.step_done import StepDone

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
"""Interval of the exchanges while training waits for an upload."""


@dataclass(frozen=True)
class RunStore:
    """The run's folder on a store, for the start of a job."""

    store: RemoteStore | None
    """On rank 0; None elsewhere."""
    attempt: int
    """Number of this start of the run; 0 on other ranks."""
    upkeep: Upkeep
    """Creates staging folders."""
    timeout: float
    """Seconds that a download or an upload may take."""
    turn: Callable[[], None]
    """Called while ranks wait."""

    def fetch(self, directory: Path, *, local: int | None, step: int | None) -> Path | None:
        """Fetch a checkpoint that is newer than the local one; see ``fetch_newer``. Collective."""
        return fetch_newer(
            self.store,
            directory,
            local=local,
            step=step,
            begin=lambda number: self.upkeep.begin(directory, number),
            timeout=self.timeout,
            turn=self.turn,
        )

    def set_later_aside(self, step: int) -> None:
        """Set the checkpoints after a step aside, newest first; on rank 0.

        Raises:
            StoreError: One cannot be set aside; the next start would use it.
        """
        assert self.store is not None
        for number in self.store.steps()[0]:
            if number > step:
                self.store.set_aside(number)
                log.warning(
                    "set aside checkpoint url=%s step=%d reason=the run goes back to step %d",
                    *(self.store.url, number, step),
                )


def open_run_store(
    config: RunConfig, folder: RunFolder | None, *, turn: Callable[[], None]
) -> RunStore | None:
    """Open the store, if the run has one. Collective over all ranks.

    Args:
        config: Checked configuration.
        folder: The locked run folder on rank 0; None elsewhere.
        turn: Called while ranks wait for a download.

    Raises:
        ConfigError: On every rank: the URL cannot be used.
    """
    url = config.checkpoint.url
    if url is None:
        return None
    opened: list[RemoteStore] = []
    Ranks(None).on_first(
        "open the store", url, lambda: opened.append(open_store(url, config.run.name))
    )
    return RunStore(
        store=opened[0] if opened else None,
        attempt=0 if folder is None else folder.attempt,
        upkeep=Upkeep(fence=None if folder is None else folder.fence),
        timeout=60.0 * (config.checkpoint.timeout_minutes or config.parallel.timeout_minutes),
        turn=turn,
    )


class Uploads:
    """A job's uploads, seen from the training thread; an observer that has no collective."""

    phase = RECORD

    def __init__(self, sink: MetricSink, uploader: Uploader | None, *, is_on: bool) -> None:
        """Store the parts.

        Args:
            sink: Takes an event for each upload.
            uploader: On rank 0; None elsewhere, and without a store.
            is_on: True if the run has a store; equal on all ranks.
        """
        self._sink = sink
        self._uploader = uploader
        self._is_on = is_on
        self._waiting: list[UploadOutcome] = []

    def offer(self, path: Path) -> None:
        """Upload a finished checkpoint; returns at once."""
        if self._uploader is not None:
            self._uploader.offer(path)

    def due(self, done: StepDone) -> bool:
        """Return True if an upload has ended; on rank 0 only."""
        if self._uploader is not None:
            self._waiting += self._uploader.outcomes()
        return bool(self._waiting)

    def act(self, done: StepDone) -> None:
        """Record the uploads that have ended."""
        self._record()

    def wait(self, turn: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Wait for the uploads to end, or to be overdue, and record them. Collective.

        Args:
            turn: Context of each short wait, so that a watchdog sees that nobody hangs.
        """
        while self._is_on:
            with turn():
                is_busy = self._uploader is not None and self._uploader.is_busy
                if not any(Ranks(None).gather(is_busy)):
                    break
                time.sleep(POLL_SECONDS)
        self._record()

    def settle(self) -> None:
        """Wait as ``wait`` does, before or after an error that all ranks raise. Not collective."""
        while self._uploader is not None and self._uploader.is_busy:
            time.sleep(POLL_SECONDS)
        self._record()

    def _record(self) -> None:
        if self._uploader is None:
            return
        self._waiting += self._uploader.outcomes()
        while self._waiting:
            outcome = self._waiting.pop(0)
            details: dict[str, str | float] = {
                "url": outcome.url,
                "seconds": round(outcome.seconds, 2),
            }
            if not outcome.error:
                details["bytes"] = outcome.num_bytes
                self._sink.event(outcome.step, "uploaded", details)
                continue
            reason = " ".join(outcome.error.split())
            self._sink.event(outcome.step, "upload_failed", {**details, "reason": reason})
            log.error("the upload of step %d failed: %s", outcome.step, outcome.error)


def open_uploads(
    config: RunConfig,
    run_store: RunStore | None,
    sink: MetricSink,
    *,
    upkeep: Upkeep,
    newest: Path | None,
) -> Uploads:
    """Claim the run's folder on the store for this job, and begin to upload. Collective.

    Args:
        config: Checked configuration.
        run_store: The store; None: the run has none.
        sink: Takes an event for each upload.
        upkeep: Rules of this job for the run's checkpoints.
        newest: The run's own checkpoint that it continues from, which the store may lack.

    Raises:
        StoreError: On every rank: the store cannot be written.
    """
    if run_store is None or config.checkpoint.interval == 0:
        return Uploads(sink, None, is_on=False)
    store = run_store.store
    uploaders: list[Uploader] = []

    def claim() -> None:
        assert store is not None  # on rank 0
        claimed = claim_store(store, attempt=run_store.attempt, config=dump_config(config))
        uploaders.append(
            Uploader(claimed, upkeep, config.checkpoint.keep_last, timeout=run_store.timeout)
        )

    Ranks(None).on_first("claim the store", str(config.checkpoint.url), claim)
    uploads = Uploads(sink, uploaders[0] if uploaders else None, is_on=True)
    if newest is not None:
        uploads.offer(newest)
    return uploads
