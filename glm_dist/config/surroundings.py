"""Variables that change results or places: each process must have the same ones.

Launchers hand on different parts of the environment. ``deepspeed --hostfile`` drops all but NCCL's
and Python's, so a folder that was exported in the shell would silently be another one.
"""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.errors import LaunchError

THREADS = "OMP_NUM_THREADS"

COMPARED = (
    THREADS,
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "DS_ACCELERATOR",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Variables that change results: order of additions, precision, algorithms."""

PREFIXES = ("GLM_", "NVTE_")
"""Beginnings of further ones: folders of this program, kernels of TransformerEngine."""

PRIVATE = ("GLM_RUN_FOLDER_FILE",)
"""For rank 0 alone."""

MAY_DIFFER = ("GLM_DATA",)
"""A host may have its own copy; that it is set must be the same."""

RUNNER = b"deepspeed.launcher.launch"
"""Part of the command that DeepSpeed sends to each host."""


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that must be the same in all processes.

    Args:
        environ: Environment of a process.
    """
    return {
        name: "set" if name in MAY_DIFFER else value
        for name, value in sorted(environ.items())
        if (name in COMPARED or name.startswith(PREFIXES)) and name not in PRIVATE
    }


def with_threads(launch: LaunchEnvironment, environ: MutableMapping[str, str]) -> LaunchEnvironment:
    """Divide the cores of this host among its processes, unless OMP_NUM_THREADS does; before torch.

    Each process would take all of them, and all wait for each other.

    Args:
        launch: Identity of this process.
        environ: Its environment, changed in place.

    Returns:
        The identity, with the number chosen.
    """
    if launch.world_size == 1 or environ.get(THREADS):
        return launch
    cores = len(os.sched_getaffinity(0))
    on_node = environ.get("SLURM_CPUS_ON_NODE", "")
    is_bound = launch.launcher == "srun" and on_node.isdecimal() and cores < int(on_node)
    threads = cores if is_bound else max(1, cores // launch.local_world_size)
    per_task = environ.get("SLURM_CPUS_PER_TASK", "")
    if launch.launcher == "srun" and per_task.isdecimal():
        threads = min(int(per_task), cores)
    environ[THREADS] = str(threads)
    return replace(launch, threads=threads)


def refuse_dropped(
    launch: LaunchEnvironment, environ: Mapping[str, str], *, processes: Path = Path("/proc")
) -> None:
    """Refuse a job of ``deepspeed --hostfile`` whose variables are not those of its shell.

    Its runner still waits for the hosts, on one of them as a rule, in a process with the command
    that it has sent. That host's first rank finds it.

    Args:
        launch: Identity of this process.
        environ: Its environment.
        processes: Folder with one folder per process.

    Raises:
        LaunchError: Variables were set where it was started, but not here.
    """
    has_hosts = launch.world_size > launch.local_world_size
    if launch.launcher != "deepspeed" or not has_hosts or launch.local_rank > 0:
        return
    mine = variables(environ)
    found: dict[str, str] = {}
    port = f"--master_port={launch.master_port}".encode()
    for folder in processes.glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if RUNNER not in command or port not in command:
                continue
            theirs = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:  # another user's, or gone
            continue
        pairs = (line.partition("=") for line in theirs.split("\0"))
        found |= {name: value for name, _, value in pairs if name}
    names = {name: found[name] for name in variables(found) if name not in mine}
    if not names:
        return
    shown = ", ".join(f"{name}={value}" for name, value in names.items())
    raise LaunchError(
        f"deepspeed does not hand on {shown}, set where it was started.\n"
        "  Write them to .deepspeed_env in this folder, which it reads:"
        " glm-dist hostfile --exports > .deepspeed_env",
        key=next(iter(names)),
        value=shown,
        fix="glm-dist hostfile --exports > .deepspeed_env",
    )
