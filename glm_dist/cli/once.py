"""One message for a mistake that many ranks meet, before they have joined a process group.

Launchers end all ranks as soon as one has ended, so no rank leaves before the message is out. On a
node, the first rank prints and leaves a mark in a file. Between nodes, whoever prints on the first
one answers at a port for a moment; the others ask there before they leave, and print themselves if
nobody answers.
"""

import hashlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.errors import EXIT_USER_ERROR, GlmDistError, LaunchError
from glm_dist.train.already import RUN_FOLDER_FILE

FIRST_NODE_SECONDS = 30.0
"""Longest wait of the other nodes for a message that concerns all: the first one may start late."""

SAME_SECONDS = 8.0
"""The same for a message that may concern this node alone."""

ANSWER_SECONDS = 10.0
"""Longest time in which the first node answers after it has printed."""

POLL_SECONDS = 0.2

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
        is_everywhere: True if the other nodes meet it as well. Otherwise whoever prints says on
            which node, and another node prints a message of its own.

    Returns:
        Exit status.
    """
    text = f"{type(error).__name__}: {error}\n"
    has_nodes = launch.world_size > launch.local_world_size
    if launch.world_size == 1:
        _say(text)
        return EXIT_USER_ERROR
    if not _claim(text, launch):
        _wait_until_said(text)
        return EXIT_USER_ERROR
    is_first_node = launch.rank == launch.local_rank
    seconds = FIRST_NODE_SECONDS if is_everywhere else SAME_SECONDS
    if not has_nodes or (is_everywhere and is_first_node):
        _say(text)
    elif is_first_node or not _was_said(launch, text, within=seconds):
        origin = f"rank {launch.rank} on {socket.gethostname()}: "
        is_of_files = not is_everywhere and not isinstance(error, LaunchError)
        _say(f"{origin}{text}{SHARED if is_of_files else ''}")
    if has_nodes and is_first_node:
        _answer(launch, text, within=ANSWER_SECONDS if is_everywhere else SAME_SECONDS)
    with suppress(OSError):
        _claim_file(text).write_text("said")
        if RUN_FOLDER_FILE in os.environ:  # a launcher may hide the status
            Path(f"{os.environ[RUN_FOLDER_FILE]}.refused").touch()
    return EXIT_USER_ERROR


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _claim(text: str, launch: LaunchEnvironment) -> bool:
    """Return True on the first rank of this node's part of the job that asks."""
    try:
        path = _claim_file(text)
        for claim in path.parent.glob(f"{_prefix()}*"):
            with suppress(FileNotFoundError):  # another rank removes it, too
                if time.time() - claim.stat().st_mtime > STALE_SECONDS:
                    claim.unlink()
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return launch.local_rank == 0  # no place for claims
    return True


def _wait_until_said(text: str) -> None:
    """Wait until the rank of this node that was first has spoken."""
    deadline = time.monotonic() + FIRST_NODE_SECONDS + ANSWER_SECONDS
    with suppress(OSError):
        path = _claim_file(text)
        while path.exists() and not path.stat().st_size and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def _answer(launch: LaunchEnvironment, text: str, *, within: float) -> None:
    """Tell the other nodes that the message is out, until each has asked, or for some seconds."""
    waiting = -(-launch.world_size // launch.local_world_size) - 1
    deadline = time.monotonic() + within
    with suppress(OSError), socket.create_server(("", _port(launch)), backlog=1024) as server:
        while waiting > 0 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(_digest(text).encode())
                waiting -= 1


def _was_said(launch: LaunchEnvironment, text: str, *, within: float) -> bool:
    """Ask the first node until it answers; return False if it does not in some seconds."""
    deadline = time.monotonic() + within
    address = launch.master_addr, _port(launch)
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(address, timeout=2.0) as connection:
            connection.settimeout(2.0)
            if connection.recv(64, socket.MSG_WAITALL).decode(errors="replace") == _digest(text):
                return True
        time.sleep(POLL_SECONDS)
    return False


def _port(launch: LaunchEnvironment) -> int:
    """Return a port next to the job's own, which torchrun holds itself."""
    return launch.master_port + (1 if launch.master_port < 65_535 else -1)


def _digest(text: str) -> str:
    """Identify a message in 64 characters."""
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _prefix() -> str:
    return f"glm_dist-{os.getuid()}-"


def _claim_file(text: str) -> Path:
    key = hashlib.blake2b(f"{_start_of_job(os.environ)}\n{text}".encode(), digest_size=12)
    return Path(tempfile.gettempdir()) / f"{_prefix()}{key.hexdigest()}"


def _start_of_job(environ: Mapping[str, str]) -> str:
    """Return what the ranks of one start have in common on a node, and no other start has."""
    names = ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"]
    # Numbers of jobs may begin again; the port of each srun is another one.
    names += ["SLURM_STEP_LAUNCHER_PORT", "SLURM_SRUN_COMM_PORT"]
    # Tasks of several containers may share a folder for claims, nodes in tests as well.
    parts = [socket.gethostname(), *(environ.get(name, "") for name in names)]
    if not environ.get("SLURM_STEP_ID"):
        parent = os.getppid()  # the launcher
        stat = Path(f"/proc/{parent}/stat")
        started = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
        parts += [str(parent), started]
    return " ".join(parts)
