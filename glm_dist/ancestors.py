"""Processes above this one whose death means that the job should stop.

A launcher that is killed leaves its ranks behind: ``deepspeed`` starts ``launch.py``, which starts
the ranks, and neither notices when the one above is gone. A shell, a terminal multiplexer or a
desktop may go away at any time, as after ``nohup train.py &``; they send HUP if they mean it.
Reads Linux' ``/proc``; elsewhere only the parent's number is known.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHERS = {
    "accelerate",
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "glm-dist",
    "glm_dist",
    "launch.py",
    "mpiexec",
    "mpirun",
    "mpirun.real",
    "orterun",
    "prterun",
    "srun",
    "torch.distributed.launch",
    "torch.distributed.run",
    "torchrun",
}
"""Programs and modules that start ranks; ``glm-dist sweep`` starts launchers."""

BYSTANDERS = {
    *("bash", "csh", "dash", "fish", "ksh", "sh", "tcsh", "zsh"),
    *("init", "screen", "sshd", "su", "sudo", "systemd", "tini", "tmux", "xterm"),
}
"""Programs that may leave while what they started goes on."""

MAX_DEPTH = 16


@dataclass(frozen=True)
class Ancestor:
    """One process; the time of its start tells it from a later one with the same number."""

    pid: int
    start_ticks: str
    """Start in clock ticks since the machine's; empty where ``/proc`` cannot be read."""
    name: str

    def is_alive(self) -> bool:
        """Return True if it runs; a process that ended and waits to be collected does not."""
        if not self.start_ticks:
            return os.getppid() == self.pid
        fields = _stat(self.pid)
        return bool(fields) and fields[19] == self.start_ticks and fields[0] not in "ZX"


def watched_ancestors() -> tuple[Ancestor, ...]:
    """Find the launchers above this process, and its parent unless that may leave."""
    found: list[Ancestor] = []
    pid = os.getppid()
    for depth in range(MAX_DEPTH):
        if pid <= 0:
            break
        fields = _stat(pid)
        if not fields:
            if depth == 0 and pid > 1:
                found.append(Ancestor(pid, "", "the process that started this one"))
            break
        program = program_of(_command(pid))
        if program in LAUNCHERS or (depth == 0 and pid > 1 and program not in BYSTANDERS):
            found.append(Ancestor(pid, fields[19], program))
        pid = int(fields[1])
    return tuple(found)


def program_of(command: Sequence[str]) -> str:
    """Name the program or Python module that a command line runs.

    Args:
        command: Its arguments, such as ``python -u -m torch.distributed.run train.py``.
    """
    if not command:
        return ""
    name = Path(command[0].lstrip("-")).name
    if not name.startswith("python"):
        return name.rstrip(":")  # slurmstepd writes "slurmstepd: [4711.0]"
    words = iter(command[1:])
    for word in words:
        if word == "-m":
            return next(words, "")
        if word in ("-W", "-X"):
            next(words, "")
        elif not word.startswith("-"):
            return Path(word).name
        elif word.startswith("-c"):
            break
    return name


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/<pid>/stat`` from the state on; empty if there are none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _command(pid: int) -> list[str]:
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return content.decode(errors="replace").rstrip("\0").split("\0")
