"""One message for a mistake that many ranks meet, before they have joined a process group.

Whichever rank of a node is first prints; launchers end the others as soon as one has ended, so
waiting for rank 0 could mean that nobody speaks.
"""

import hashlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.errors import EXIT_USER_ERROR, GlmDistError

FIRST_NODE_SECONDS = 5.0
"""Head start of the first node with a message that concerns all: an exit elsewhere may end it."""

SHARED = (
    "  If other hosts have these files, they are not on a disk that all hosts share: set paths.data"
    " and paths.runs to one that is.\n"
)

STALE_SECONDS = 3600.0
"""Age at which a claim belongs to no job that is still starting."""


def print_once(error: GlmDistError, launch: LaunchEnvironment, *, is_everywhere: bool) -> int:
    """Print a mistake that every rank of this node meets.

    Args:
        error: The mistake.
        launch: Who this process is.
        is_everywhere: True if the other nodes meet it as well; then only the first one prints.
            Otherwise each node prints and says which it is.

    Returns:
        Exit status.
    """
    text = f"{type(error).__name__}: {error}\n"
    has_nodes = launch.world_size > launch.local_world_size
    if has_nodes and is_everywhere and launch.rank != launch.local_rank:
        time.sleep(FIRST_NODE_SECONDS)
        return EXIT_USER_ERROR
    if launch.world_size == 1 or _claim(launch, text):
        if has_nodes and not is_everywhere:
            text = f"{socket.gethostname()}: {text}{SHARED}"
        sys.stderr.write(text)
        sys.stderr.flush()
    return EXIT_USER_ERROR


def _claim(launch: LaunchEnvironment, text: str) -> bool:
    """Return True on the first rank of this node's part of the job that asks."""
    folder = Path(tempfile.gettempdir())
    prefix = f"glm_dist-{os.getuid()}-"
    key = hashlib.blake2b(f"{_start_of_job(os.environ)}\n{text}".encode(), digest_size=12)
    try:
        for claim in folder.glob(f"{prefix}*"):
            if time.time() - claim.stat().st_mtime > STALE_SECONDS:
                claim.unlink(missing_ok=True)
        (folder / f"{prefix}{key.hexdigest()}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return launch.local_rank == 0  # no place for claims
    return True


def _start_of_job(environ: Mapping[str, str]) -> str:
    """Return what the ranks of one start have in common on a node, and no other start has."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    parts = [environ.get(name, "") for name in names]
    if not environ.get("SLURM_STEP_ID"):
        parent = os.getppid()  # the launcher
        stat = Path(f"/proc/{parent}/stat")
        started = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
        parts += [str(parent), started]
    return " ".join(parts)
