"""This process's rank in the job, read from the launcher's variables.

torchrun and deepspeed export RANK and its companions; srun exports SLURM_PROCID and its own; a
plain ``python train.py`` exports nothing and is a job of one process. Pure text in, numbers out.
"""

import re
import reprlib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm_dist.config.lonely import in_step, refuse_lonely_host, refuse_lonely_process
from glm_dist.errors import LaunchError

DEVICES = Path("/dev")

FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Range of ports derived from job ids, below Linux' ephemeral ports (32768 and up)."""


@dataclass(frozen=True)
class LaunchEnvironment:
    """One process among those that were started together."""

    rank: int
    world_size: int
    local_rank: int
    """Number among the processes on this node."""
    local_world_size: int
    """Processes on this node."""
    master_addr: str
    master_port: int
    launcher: str
    """torchrun, deepspeed, environment (any other that exports RANK), srun or python."""
    restart: int = 0
    """Times that torchrun has restarted the ranks; its store keeps what earlier ones wrote."""
    has_agent_store: bool = False
    """True if a process of torchrun holds the job's store; else rank 0 does."""
    threads: int | None = None
    """Threads of each process as this program has chosen them; None: a variable says how many."""


def read_launch_environment(
    environ: Mapping[str, str], *, trains: bool = True
) -> LaunchEnvironment:
    """Read who this process is.

    RANK and its companions win over SLURM's variables, because torchrun and deepspeed also run
    inside SLURM jobs.

    Args:
        environ: Environment of the process.
        trains: Refuse to be alone where several tasks were reserved; what does not train may run
            so, in a batch script for example.

    Raises:
        LaunchError: Variables are missing, malformed or contradict each other.
    """
    if any(name in environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        launch = _exported(environ)
        if trains:
            refuse_lonely_host(
                environ,
                launcher=launch.launcher,
                world_size=launch.world_size,
                local_world_size=launch.local_world_size,
            )
        return launch
    if _is_srun_task(environ):
        return _srun(environ)
    if trains:
        refuse_lonely_process(environ)
    return LaunchEnvironment(0, 1, 0, 1, "127.0.0.1", 0, "python")


def without_local_rank(arguments: Sequence[str]) -> list[str]:
    """Arguments without the ``--local_rank=N`` that launchers insert after the script's name.

    The rank itself is taken from LOCAL_RANK, which every such launcher exports as well.

    Args:
        arguments: Command line without the program's name.
    """
    kept: list[str] = []
    value_follows = False
    for argument in arguments:
        if value_follows and re.fullmatch(r"-?\d+", argument):
            value_follows = False
            continue
        value_follows = argument in ("--local_rank", "--local-rank")
        if not value_follows and not re.match(r"--local[_-]rank=", argument):
            kept.append(argument)
    return kept


def hide_gpus_if_asked(environ: MutableMapping[str, str]) -> None:
    """Hide every GPU from this process where ``DS_ACCELERATOR=cpu``; before torch is imported.

    The ``deepspeed`` launcher overwrites CUDA_VISIBLE_DEVICES for its ranks, so this variable
    is the one that chooses the CPUs of a GPU machine under every launcher.

    Args:
        environ: Environment of the process; changed in place.
    """
    if environ.get("DS_ACCELERATOR") == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""


def gpus_are_hidden(environ: Mapping[str, str]) -> bool:
    """Return True if CUDA_VISIBLE_DEVICES says that this process may use no GPU.

    Args:
        environ: Environment of the process.
    """
    hidden = environ.get("CUDA_VISIBLE_DEVICES")
    return hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles")


def accelerator_is_visible(environ: Mapping[str, str], *, devices: Path = DEVICES) -> bool:
    """Return True if this process may use a GPU, without loading torch.

    Args:
        environ: Environment of the process; CUDA_VISIBLE_DEVICES may hide every GPU.
        devices: Folder of the device files.
    """
    if gpus_are_hidden(environ):
        return False
    return any(re.fullmatch(r"nvidia\d+|kfd|dxg", entry.name) for entry in devices.iterdir())


def _exported(environ: Mapping[str, str]) -> LaunchEnvironment:
    """Read torchrun's and deepspeed's variables."""
    present = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environ]
    needed = ["RANK", "WORLD_SIZE"]
    if environ.get("WORLD_SIZE") != "1":  # one process needs no network
        needed += ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
    for name in needed:
        if name not in environ:
            raise LaunchError(
                f"{name} is not set, but {' and '.join(present)}"
                f" {'is' if len(present) == 1 else 'are'}:"
                " part of a launch's variables is missing.\n"
                "  Start with torchrun, deepspeed or srun, which set all of them, or unset"
                f" {' '.join(present)}.",
                key=name,
                value=None,
                fix=f"unset {' '.join(present)}",
            )
    rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE", at_least=1)
    local_rank = _number(environ, "LOCAL_RANK", default=0)
    size_name = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environ else "LOCAL_SIZE"
    local_world_size = _number(environ, size_name, default=local_rank + 1, at_least=1)
    launcher = "environment"
    if "TORCHELASTIC_RUN_ID" in environ:
        launcher = "torchrun"
    elif "LOCAL_SIZE" in environ:
        launcher = "deepspeed"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", size_name)
    _check_ranks(names, rank, world_size, local_rank, local_world_size)
    return LaunchEnvironment(
        rank,
        world_size,
        local_rank,
        local_world_size,
        environ.get("MASTER_ADDR", "127.0.0.1"),
        _port(environ, default=0),
        launcher,
        restart=_number(environ, "TORCHELASTIC_RESTART_COUNT", default=0),
        has_agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _is_srun_task(environ: Mapping[str, str]) -> bool:
    """Return True if srun started this process.

    A batch script sees SLURM_PROCID=0 and SLURM_NTASKS too (SLURM 22.05), but no step of its own,
    or one of SLURM's special ones; and sbatch sets ENVIRONMENT=BATCH, which srun hands on.
    """
    if "SLURM_PROCID" not in environ:
        return False
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID"))
    if step is None:
        return "SLURM_NTASKS" in environ and environ.get("ENVIRONMENT") != "BATCH"
    return in_step(environ)


def _srun(environ: Mapping[str, str]) -> LaunchEnvironment:
    """Read srun's variables; the master is the first node of the step unless exported."""
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    rank, world_size = (
        _number(environ, "SLURM_PROCID"),
        _number(environ, size_name, at_least=1),
    )
    local_rank = _number(environ, "SLURM_LOCALID", default=rank if world_size == 1 else None)
    local_world_size = _tasks_on_this_node(environ, default=min(world_size, local_rank + 1))
    names = ("SLURM_PROCID", size_name, "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    _check_ranks(names, rank, world_size, local_rank, local_world_size)
    return LaunchEnvironment(
        rank,
        world_size,
        local_rank,
        local_world_size,
        _slurm_master(environ, world_size),
        _slurm_port(environ, world_size),
        "srun",
    )


def _slurm_master(environ: Mapping[str, str], world_size: int) -> str:
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"]
    nodes = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST", ""))
    # SLURM_LAUNCH_NODE_IPADDR comes second: for an srun typed on a login node it is that node.
    master = first_host(nodes) or environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if master:
        return master
    if world_size == 1:
        return "127.0.0.1"
    raise LaunchError(
        f"MASTER_ADDR is not set, and nothing says which host has rank 0 of the {world_size}"
        " tasks that"
        " srun started.\n"
        "  Export MASTER_ADDR=<first host>.",
        key="MASTER_ADDR",
        value=None,
        fix="export MASTER_ADDR=<first host>",
    )


def _slurm_port(environ: Mapping[str, str], world_size: int) -> int:
    """The exported port, or one that a step's tasks derive alike and other jobs hardly share."""
    if "MASTER_PORT" in environ:
        return _port(environ, default=0)
    job = environ.get("SLURM_JOB_ID", environ.get("SLURM_JOBID", ""))
    if job.isdecimal():
        step = environ.get("SLURM_STEP_ID", "0")
        return FIRST_PORT + (int(job) * 7 + int(step if step.isdecimal() else 0)) % NUM_PORTS
    if world_size == 1:
        return 0
    raise LaunchError(
        "MASTER_PORT is not set, and there is no SLURM_JOB_ID to derive a port from.\n"
        "  Export MASTER_PORT=29500.",
        key="MASTER_PORT",
        value=None,
        fix="export MASTER_PORT=29500",
    )


def first_host(nodes: str) -> str:
    """First host of a SLURM node list.

    Args:
        nodes: Compressed list such as ``gpu[003,007-010],cpu1``.

    Returns:
        A host name such as ``gpu003``; empty for an empty list.
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group() if first else "").strip()


def _tasks_on_this_node(environ: Mapping[str, str], *, default: int) -> int:
    """Tasks on this node out of a list such as ``8(x3),2`` (three nodes of 8, one of 2)."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    nodes_left = _number(environ, "SLURM_NODEID", default=0)
    for tasks, repeat in re.findall(r"(\d{1,18})(?:\(x(\d{1,18})\))?", text):
        nodes_left -= int(repeat or 1)
        if nodes_left < 0:
            return int(tasks)
    return default


def _number(
    environ: Mapping[str, str], name: str, *, default: int | None = None, at_least: int = 0
) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"\s*\d{1,18}\s*", text) or int(text) < at_least:
        problem = "is not set" if text is None else f"is {reprlib.repr(text)}"
        raise LaunchError(
            f"{name} {problem}, but it must be a whole number of at least {at_least}.\n"
            f"  Let the launcher set {name}, or unset the variables of an earlier launch.",
            key=name,
            value=text,
            fix=f"unset {name}",
        )
    return int(text)


def _port(environ: Mapping[str, str], *, default: int) -> int:
    port = _number(environ, "MASTER_PORT", default=default)
    if port > 65_535:
        raise LaunchError(
            f"MASTER_PORT={port} is no port: the largest is 65535.\n  Export MASTER_PORT=29500.",
            key="MASTER_PORT",
            value=port,
            fix="export MASTER_PORT=29500",
        )
    return port


def _check_ranks(
    names: tuple[str, str, str, str], rank: int, world_size: int, local_rank: int, local_size: int
) -> None:
    for name, value, size_name, size in (
        (names[0], rank, names[1], world_size),
        (names[2], local_rank, names[1], world_size),
        (names[2], local_rank, names[3], local_size),
    ):
        if value >= size:
            raise LaunchError(
                f"{name}={value} must be less than {size_name}={size}.\n"
                "  Unset the variables of an earlier launch and start again.",
                key=name,
                value=value,
                fix=f"unset {name} {size_name}",
            )
    if local_size > world_size:
        raise LaunchError(
            f"{names[3]}={local_size} processes on this node are more than the {world_size} of"
            " all nodes"
            f" ({names[1]}).\n"
            "  Unset the variables of an earlier launch and start again.",
            key=names[3],
            value=local_size,
            fix=f"unset {names[3]} {names[1]}",
        )
