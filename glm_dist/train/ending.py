"""End of a job: its exit status, and its markers in the run folder."""

import logging

from glm_dist.config.schema import RunConfig
from glm_dist.errors import (
    EXIT_FINISHED,
    EXIT_HUMAN_NEEDED,
    EXIT_STOPPED,
    EXIT_UNSAVED,
    GlmDistError,
)
from glm_dist.observe.endings import Stopped, write_finished, write_stopped
from glm_dist.observe.run_folder import RunFolder
from glm_dist.parallel.errors import RankFailure
from glm_dist.train.preemption import StopRequest

log = logging.getLogger(__name__)


def fail_attempt(folder: RunFolder | None, error: GlmDistError | RankFailure) -> None:
    """Write the marker of a failure that a restart would only repeat.

    Args:
        folder: On rank 0; None elsewhere.
        error: Raised in training.
    """
    if folder is None or error.status != EXIT_HUMAN_NEEDED or not folder.fence.holds():
        return
    reason = str(error).partition("\n")[0]
    stopped = Stopped(None, folder.attempt, reason, saved=False, status=EXIT_HUMAN_NEEDED)
    write_stopped(folder.path, stopped)


def end_attempt(folder: RunFolder | None, config: RunConfig, request: StopRequest) -> int:
    """Write the marker of a run that ended well, and say how it ended.

    Args:
        folder: On rank 0; None elsewhere.
        config: The run's configuration.
        request: After the last vote.

    Returns:
        Exit status; equal on all ranks.
    """
    if not request.has_stopped:
        if folder is not None:
            step = request.finished_at or config.run.steps
            write_finished(folder.path, step=step, attempt=folder.attempt)
        return EXIT_FINISHED
    saved = request.has_trained and config.checkpoint.interval > 0
    status = EXIT_STOPPED if saved or not request.has_trained else EXIT_UNSAVED
    if folder is None:
        return status
    write_stopped(
        folder.path,
        Stopped(request.stopped_at, folder.attempt, request.reason, saved=saved, status=status),
    )
    if not request.has_trained:
        log.warning("stopped before training; nothing to save reason=%s", request.reason)
    elif saved:
        log.warning("stopped and saved step=%d reason=%s", request.stopped_at, request.reason)
    else:
        log.warning(
            "stopped without a checkpoint, because checkpoint.interval=0; status=%d", status
        )
    return status
