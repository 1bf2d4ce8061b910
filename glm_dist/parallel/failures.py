"""Failure of a single rank: a board in the job's store, and a thread on every rank that reads it.

A rank that raises in the middle of a step leaves the others in a collective, where NCCL may wait
for half an hour and no log names the culprit. So a failing rank posts its error before it exits.
Every other rank polls the board once a second, reports the failed rank, and exits as well.

The user's mistakes that all ranks raise are printed once, by the first rank to raise them.
"""

import hashlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch._C._distributed_c10d import PrefixStore, Store

from glm_dist.errors import EXIT_BUG, GlmDistError
from glm_dist.parallel.errors import RankFailure, refusal

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Interval between two reads of the board."""

LINGER_SECONDS = 5.0
"""Longest wait of a failing rank for the others to read the board; launchers kill them soon."""

VERDICT_LINGER_SECONDS = 1.2
"""The same after a verdict of the watchdog, since the rank that hangs does not read."""

PEER_SECONDS = 3.0
"""Longest wait for a post after a collective broke, which may happen before the post."""

_FAILED, _READ = "failed", "read"


class FailureBoard:
    """Board of one job, on which a failing rank posts its error."""

    def __init__(self, store: Store, *, rank: int, world_size: int) -> None:
        """Open the board of a job.

        Args:
            store: The job's store; rank 0 or the launcher holds it.
            rank: This process.
            world_size: Processes of the job.
        """
        self._store = PrefixStore("glm_dist/failures", store)
        self._world_size = world_size
        self.rank = rank
        self.host = socket.gethostname()
        self._ends = threading.Event()
        self.last_words: Callable[[RankFailure], None] = lambda failure: None
        """Called before this process ends because of another rank's failure."""

    def post(self, error: BaseException, *, status: int) -> None:
        """Post that this rank failed, unless another did before, and wait until all have read it.

        Args:
            error: Exception of this rank.
            status: Exit status of this rank, which the others end with as well.
        """
        first_line = (str(error).splitlines() or [""])[0]
        self._post([self.rank, self.host, f"{type(error).__name__}: {first_line}", status, False])
        self.acknowledge()

    def post_verdict(self, text: str) -> None:
        """Post that the job hangs or lost a rank, unless another failure was posted before.

        Args:
            text: Message that names the guilty ranks; this rank prints it.
        """
        self._post([self.rank, self.host, text, EXIT_BUG, True])
        self.acknowledge(within=VERDICT_LINGER_SECONDS)

    def _post(self, entry: list[object]) -> None:
        # RuntimeError: the process that held the store has exited.
        with suppress(RuntimeError):
            self._store.compare_set(_FAILED, "", json.dumps(entry))

    def read(self, *, within: float = 0.0) -> RankFailure | None:
        """Return the failure on the board, if another rank posted one.

        Args:
            within: Seconds to wait for one.
        """
        deadline = time.monotonic() + within
        while True:
            try:
                if self._store.check([_FAILED]):
                    rank, host, summary, status, is_verdict = json.loads(self._store.get(_FAILED))
                    failure = RankFailure(
                        rank,
                        host,
                        summary,
                        status=status,
                        is_verdict=is_verdict,
                        is_reported=is_verdict,
                    )
                    return failure if rank != self.rank else None
            except RuntimeError:
                return None
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.1)

    def acknowledge(self, *, within: float = LINGER_SECONDS) -> None:
        """Note that this rank has read the board, and wait a little for the others.

        Launchers kill a job when its first process exits, and the store exits with its holder.

        Args:
            within: Seconds to wait.
        """
        try:
            self._store.add(_READ, 1)
            deadline = time.monotonic() + within
            while self._store.add(_READ, 0) < self._world_size and time.monotonic() < deadline:
                time.sleep(0.05)
            if self.rank == 0:
                time.sleep(0.5)  # it may hold the store that the others still query
        except RuntimeError:
            return

    def claim(self, text: str) -> bool:
        """Return True on the first rank that claims this text; it prints for all."""
        try:
            key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            return int(self._store.add(key, 1)) == 1
        except RuntimeError:
            return False

    def watch(self, when_failed: Callable[[RankFailure], None]) -> None:
        """Poll the board from a thread until ``close``.

        Args:
            when_failed: Called once, in that thread, if another rank fails.
        """

        def look() -> None:
            while not self._ends.wait(POLL_SECONDS):
                failure = self.read()
                if failure is not None and not self._ends.is_set():
                    when_failed(failure)
                    return

        threading.Thread(target=look, name="failure watch", daemon=True).start()

    def close(self) -> None:
        """Stop polling."""
        self._ends.set()


def report_failure(board: FailureBoard, failure: RankFailure) -> None:
    """Report the failed rank: in this rank's log, and once per host on the console.

    The rank that gives a verdict prints it itself.
    """
    if failure.is_verdict:
        level = logging.INFO if failure.is_reported else logging.ERROR
        log.log(level, "%s", failure, extra={"file_only": failure.is_reported})
        return
    speaks = board.claim(f"{board.host} {failure}")
    log.log(logging.ERROR if speaks else logging.INFO, "%s", failure)


def report_mistake(board: FailureBoard, error: GlmDistError) -> None:
    """Print a user error on the first rank that raises it; the others only log it.

    An error of a single rank begins with that rank and its host.
    """
    text = f"{type(error).__name__}: {error}"
    log.info("stopped by %s", text, extra={"file_only": True})
    if board.claim(text):
        origin = "" if error.rank is None else f"rank {error.rank} on {board.host}: "
        sys.stderr.write(f"{origin}{text}\n")
        sys.stderr.flush()


@contextmanager
def heard_by_all(
    board: FailureBoard,
    *,
    explain: Callable[[BaseException], RankFailure | None] = lambda error: None,
) -> Iterator[None]:
    """Post an exception of this rank's block; exit if another rank posts one.

    Args:
        board: Board of the job.
        explain: Returns the failure behind a broken collective; None for other exceptions.

    Raises:
        RankFailure: Another rank failed; also replaces the error of a collective that it broke.
        GlmDistError: A user error, or an error of the operating system.
        SystemExit: A bug; its traceback is on the console and in this rank's log.
    """

    def end(failure: RankFailure) -> None:
        report_failure(board, failure)
        board.last_words(failure)
        board.acknowledge(within=VERDICT_LINGER_SECONDS if failure.is_verdict else LINGER_SECONDS)
        logging.shutdown()
        os._exit(failure.status)  # the main thread may be stuck in a collective

    board.watch(end)
    try:
        yield
    except RankFailure:
        board.acknowledge()
        raise
    except GlmDistError as error:
        board.close()
        if error.rank is not None:
            board.post(error, status=error.status)
        raise
    except OSError as error:
        board.close()
        mistake = refusal(error, task="continue", path=str(error.filename or "input or output"))
        mistake.rank = board.rank
        board.post(mistake, status=mistake.status)
        raise mistake from error
    except Exception as error:
        board.close()
        # The error of a collective whose peer has exited is not this rank's failure.
        other = _failure_behind(board, error, explain)
        if other is not None:
            board.last_words(other)
            board.acknowledge(within=VERDICT_LINGER_SECONDS if other.is_verdict else LINGER_SECONDS)
            raise other from None
        log.exception("rank %d on %s failed", board.rank, board.host)
        board.post(error, status=EXIT_BUG)
        raise SystemExit(EXIT_BUG) from error
    finally:
        board.close()


def _failure_behind(
    board: FailureBoard,
    error: Exception,
    explain: Callable[[BaseException], RankFailure | None],
) -> RankFailure | None:
    """Return the failure of another rank that broke a collective of this one."""
    if not isinstance(error, RuntimeError):
        return None
    return explain(error) or board.read(within=PEER_SECONDS)
