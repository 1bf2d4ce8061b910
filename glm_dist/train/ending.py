"""End of a job: its exit status, and its markers in the run folder."""

import logging
from collections.abc import Mapping
from pathlib import Path

from glm_dist.checkpoint.folders import list_steps
from glm_dist.config.schema import RunConfig
from glm_dist.errors import (
    EXIT_FINISHED,
    EXIT_HUMAN_NEEDED,
    EXIT_STOPPED,
    EXIT_UNSAVED,
    GlmDistError,
)
from glm_dist.observe.endings import Stopped, remove_endings, write_finished, write_stopped
from glm_dist.observe.run_folder import CHECKPOINTS, RunFolder
from glm_dist.parallel.errors import RankFailure
from glm_dist.train.preemption import StopRequest

log = logging.getLogger(__name__)

RUN_FOLDER_FILE = "GLM_RUN_FOLDER_FILE"
"""Variable with the path of a file in which a script finds the run folder and its newest checkpoint
at the start, a line each."""


def clear_endings(folder: RunFolder, config: RunConfig, environ: Mapping[str, str]) -> None:
    """Remove endings that are no longer true, and report the folder to the script that asks.

    Args:
        folder: Open and locked; on rank 0.
        config: The run's configuration.
        environ: Environment of the process.
    """
    remove_endings(folder.path, last_step=config.run.steps)
    if environ.get(RUN_FOLDER_FILE):
        steps = list_steps(folder.path / CHECKPOINTS)
        newest = steps[0][1].name if steps else ""
        try:
            Path(environ[RUN_FOLDER_FILE]).write_text(f"{folder.path.resolve()}\n{newest}\n")
        except OSError as error:
            log.warning("could not write %s=%s (%s)", RUN_FOLDER_FILE, error.filename, error)


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
