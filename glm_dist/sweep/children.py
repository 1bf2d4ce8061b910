"""Processes of a sweep: several at a time, each with its share of the GPUs and its own output."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm_dist.ancestors import program_of
from glm_dist.errors import EXIT_STOPPED, EXIT_UNSAVED, LaunchError
from glm_dist.stop_signals import StopListener
from glm_dist.sweep.outcomes import stopped_status
from glm_dist.sweep.points import Point

OUTPUT_FILE = "output.log"
"""Everything that a run's processes printed, in its folder."""

LONGEST_REASON = 300
"""Characters of an error in a line of the sweep."""

POLL_SECONDS = 0.2

_TORCHRUN = ("torchrun", "torch.distributed.run")


@dataclass(frozen=True)
class Job:
    """One point to run."""

    point: Point
    folder: Path
    """Its run folder."""
    command: tuple[str, ...]
    """Without the rendezvous, which depends on the slot."""


@dataclass(frozen=True)
class Ended:
    """The end of a point's processes."""

    job: Job
    status: int
    """Exit status; 75 and 130 if it was asked to stop, also where a launcher hides that."""
    seconds: float

    @property
    def is_stopped(self) -> bool:
        """True if it stopped on request; the same command goes on."""
        return self.status in (EXIT_STOPPED, EXIT_UNSAVED)


@dataclass
class _Running:
    job: Job
    slot: int
    process: subprocess.Popen[bytes]
    began: float


def check_launcher(launcher: str) -> None:
    """Refuse a launcher that cannot start anything.

    Args:
        launcher: Command line; empty: none.

    Raises:
        LaunchError: It is no command line, or there is no such program.
    """
    try:
        words = shlex.split(launcher)
        problem = "" if not words or shutil.which(words[0]) else "there is no such program here"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise LaunchError(
            f"--launcher {launcher!r} starts nothing: {problem}.\n"
            "  Write for example --launcher 'torchrun --nproc-per-node 2'.",
            key="--launcher",
            value=launcher,
            fix="--launcher 'torchrun --nproc-per-node 2'",
        )


def command_of(arguments: Sequence[str], launcher: str) -> tuple[str, ...]:
    """Write the command line of a point.

    Args:
        arguments: Of ``glm-dist``: a command and its overrides.
        launcher: Program that starts the ranks, with its options; empty: one process.
    """
    words = shlex.split(launcher)
    match program_of(words):
        case "torchrun" | "torch.distributed.run":
            start = [*words, "-m", "glm_dist"]
        case "deepspeed":
            start = [*words, "--no_local_rank", "--module", "glm_dist"]
        case _:
            start = [*words, sys.executable, "-m", "glm_dist"]
    return (*start, *arguments)


def run_jobs(
    jobs: Sequence[Job],
    *,
    slots: int,
    listener: StopListener | None,
    started: Callable[[Job], None],
) -> Iterator[Ended]:
    """Run jobs, several at a time, and yield each when it has ended.

    After a stop request no further one starts; those that run are asked to save and waited for.

    Args:
        jobs: Run in this order.
        slots: Jobs at a time.
        listener: Hears the requests.
        started: Called with each job that starts.
    """
    waiting, running = list(jobs), list[_Running]()
    is_stopping = False
    try:
        while running or (waiting and not is_stopping):
            if listener is not None and listener.code and not is_stopping:
                is_stopping = True
                _ask_to_stop(running)
            while waiting and not is_stopping and len(running) < slots:
                slot = min({*range(slots)} - {each.slot for each in running})
                running.append(_start(waiting.pop(0), slot, slots))
                started(running[-1].job)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                yield _ended(each, is_stopping=is_stopping)
            if listener is None or is_stopping:
                time.sleep(POLL_SECONDS)
            else:
                listener.wait(POLL_SECONDS)
    finally:
        _ask_to_stop(running)  # nobody is left to wait for them


def _start(job: Job, slot: int, slots: int) -> _Running:
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | environment_of(os.environ, slot, slots)
    with (job.folder / OUTPUT_FILE).open("ab") as output:
        # A session of its own: Ctrl-C reaches it through us, once and not twice.
        process = subprocess.Popen(
            with_port(job.command, _free_port()),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return _Running(job, slot, process, time.monotonic())


def _ended(running: _Running, *, is_stopping: bool) -> Ended:
    status = running.process.returncode
    if is_stopping and status == -signal.SIGTERM:
        status = EXIT_STOPPED  # before it listened: it had not begun
    if status not in (0, EXIT_STOPPED, EXIT_UNSAVED):  # torchrun turns every status into 1
        noted = stopped_status(running.job.folder)
        status = noted if noted in (EXIT_STOPPED, EXIT_UNSAVED) else status
    return Ended(running.job, status, time.monotonic() - running.began)


def _ask_to_stop(running: Sequence[_Running]) -> None:
    for each in running:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGTERM)


def with_port(command: Sequence[str], port: int) -> list[str]:
    """Give jobs side by side different ports where their launcher would take the same.

    Args:
        command: Of ``command_of``.
        port: Free port; not used if the launcher's own options say how its ranks meet.
    """
    program, words = program_of(command), " ".join(command)
    if re.search(r"--(master[_-]port|rdzv|standalone|hostfile)", words):
        return list(command)
    if program == "deepspeed":
        place = command.index("--no_local_rank")
    elif program in _TORCHRUN:
        place = len(command) - command[::-1].index("glm_dist") - 2
    else:
        return list(command)
    return [*command[:place], f"--master_port={port}", *command[place:]]


def _free_port() -> int:
    """Ask the system for a port that nobody uses: other sweeps may run on this host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(environ: Mapping[str, str], slot: int, slots: int) -> dict[str, str]:
    """Share GPUs and cores among jobs side by side.

    Args:
        environ: Environment of this process.
        slot: Number of the job among those.
        slots: Jobs at a time.

    Returns:
        Variables to set.
    """
    if slots == 1:
        return {}
    changed = {}
    cores = len(os.sched_getaffinity(0))
    if "OMP_NUM_THREADS" not in environ:
        changed["OMP_NUM_THREADS"] = str(max(1, cores // slots))
    gpus = visible_gpus(environ)
    if gpus:
        each = max(1, len(gpus) // slots)
        first = slot * each % len(gpus)
        changed["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + each])
    return changed


def visible_gpus(environ: Mapping[str, str], *, devices: Path = Path("/dev")) -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them.

    Args:
        environ: Environment of the process.
        devices: Folder of the device files.
    """
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        names = [name.strip() for name in named.split(",")]
        return [] if names[0] in ("", "-1", "NoDevFiles") else names
    found = [re.fullmatch(r"nvidia(\d+)", entry.name) for entry in devices.iterdir()]
    return [str(number) for number in range(sum(match is not None for match in found))]


def last_error(output: Path) -> str:
    """Return the first line of the last error in a run's output, else its last line."""
    try:
        text = output.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no output"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(rank \d+: )?[\w.]*Error: ", line)]
    return (errors or lines or ["no output"])[-1][:LONGEST_REASON]
