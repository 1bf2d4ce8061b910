"""Names of hosts: SLURM's compressed lists, and DeepSpeed's hostfile."""

import itertools
import re
from collections.abc import Mapping

from glm_dist.errors import LaunchError

MAX_HOSTS = 100_000


def expand_hosts(nodes: str) -> list[str]:
    """Expand a list of hosts.

    Args:
        nodes: Names separated by commas or spaces, numbers as SLURM compresses them, such as
            ``gpu[003,007-010],cpu1``.

    Returns:
        Names such as ``gpu003``, in order.

    Raises:
        LaunchError: The list is malformed or empty.
    """
    found: list[str] = []
    for word in re.findall(r"(?:[^,\s\[\]]|\[[^\]]*\])+", nodes):
        parts = [
            _numbers(part[1:-1], nodes) if part.startswith("[") else [part]
            for part in re.findall(r"\[[^\]]*\]|[^\[]+", word)
        ]
        found += [
            "".join(names) for names in itertools.islice(itertools.product(*parts), MAX_HOSTS)
        ]
    if not found or nodes.count("[") != nodes.count("]"):
        raise _malformed(nodes)
    return found


def _numbers(text: str, nodes: str) -> list[str]:
    numbers: list[str] = []
    for part in text.split(","):
        limits = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if limits is None:
            raise _malformed(nodes)
        first, last = limits[1], limits[2] or limits[1]
        if not 0 <= int(last) - int(first) < MAX_HOSTS:
            raise _malformed(nodes)
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return numbers


def _malformed(nodes: str) -> LaunchError:
    return LaunchError(
        f"{nodes!r} is no list of hosts.\n"
        "  Write names with commas, such as gpu1,gpu2 or gpu[01-16].",
        key="hosts",
        value=nodes,
        fix="gpu[01-16]",
    )


def slots_of_job(environ: Mapping[str, str], hosts: int) -> list[int]:
    """Return the processes on each host of a SLURM job; empty if its variables do not say.

    Args:
        environ: Environment of the job: SLURM_TASKS_PER_NODE such as ``8(x3),2``, else
            SLURM_GPUS_ON_NODE.
        hosts: Number of hosts.
    """
    slots: list[int] = []
    for tasks, repeat in re.findall(
        r"(\d{1,6})(?:\(x(\d{1,6})\))?", environ.get("SLURM_TASKS_PER_NODE", "")
    ):
        slots += [int(tasks)] * int(repeat or 1)
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    # One task a node starts a launcher, whose processes are the GPUs.
    if gpus.isdecimal() and int(gpus) > 0 and set(slots) <= {1}:
        slots = [int(gpus)] * hosts
    return slots if len(slots) == hosts else []
