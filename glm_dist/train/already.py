"""A run folder before the job: finished already, and noted for the script that started the job.

Neither needs torch: a finished run that is submitted again ends before anything is loaded.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from glm_dist.checkpoint.folders import list_steps
from glm_dist.config.schema import Resume, RunConfig
from glm_dist.files import exists
from glm_dist.observe.endings import finished_step
from glm_dist.observe.provenance import count_attempts
from glm_dist.observe.run_folder import CHECKPOINTS, CONFIG_FILE
from glm_dist.train.preflight import check_run_folder

log = logging.getLogger(__name__)

RUN_FOLDER_FILE = "GLM_RUN_FOLDER_FILE"
"""Variable with the path of a file for the script that started the job. It gets the run folder, its
newest checkpoint, the number of the attempt, and "part" if the job trains further runs, a line
each. A file beside it, with .refused at its end, says that the job was refused with status 2."""


def note_run_folder(
    config: RunConfig, environ: Mapping[str, str], *, is_part: bool = False
) -> None:
    """Leave a note for the script that started the job, if it asks; on rank 0.

    Args:
        config: The run's configuration.
        environ: Environment of the process.
        is_part: The job trains further runs.
    """
    if not environ.get(RUN_FOLDER_FILE):
        return
    steps = list_steps(config.run_dir / CHECKPOINTS) if exists(config.run_dir) else []
    newest = steps[0][1].name if steps else ""
    attempt = count_attempts(config.run_dir) + 1
    lines = [str(config.run_dir.resolve()), newest, str(attempt), "part" if is_part else ""]
    try:
        Path(environ[RUN_FOLDER_FILE]).write_text("".join(f"{line}\n" for line in lines))
    except OSError as error:
        log.warning("could not write %s=%s (%s)", RUN_FOLDER_FILE, error.filename, error)


def is_finished(config: RunConfig) -> bool:
    """Return True if the run has nothing left to do.

    Args:
        config: Checked configuration.

    Raises:
        GlmDistError: The folder belongs to another configuration; see ``check_run_folder``.
    """
    if config.checkpoint.resume is Resume.never or config.checkpoint.step is not None:
        return False
    step = finished_step(config.run_dir)
    if step is None or step < config.run.steps or not exists(config.run_dir / CONFIG_FILE):
        return False  # without its configuration, only the checkpoint tells what the run is
    return check_run_folder(config) == step
