"""Refusal of a job that would not use its GPUs as they are meant: one for each process.

A torch built for CPUs, a driver older than CUDA wants and a container without devices all look like
a good but slow job, on GPUs that are paid for. Two processes on one GPU end in an error of NCCL.
"""

import re
import socket
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch

from glm_dist.config.launch import DEVICES, LaunchEnvironment, gpus_are_hidden
from glm_dist.errors import LaunchError
from glm_dist.parallel.errors import Ranks
from glm_dist.parallel.hardware import DRIVER_FILE, driver_version

RESERVED = "SLURM_GPUS_ON_NODE"
"""Number of GPUs that SLURM has reserved on this node."""

ON_PURPOSE = "DS_ACCELERATOR=cpu"


def check_gpus(
    launch: LaunchEnvironment,
    environ: Mapping[str, str],
    *,
    devices: Path = DEVICES,
    driver: Path = DRIVER_FILE,
) -> str | None:
    """Compare the GPUs that torch can use with those that this node has for the job.

    GPUs that SLURM has reserved must be usable, and so must those of a job on several hosts. One
    machine with a GPU that torch cannot use, a laptop for example, trains on its CPUs.

    Args:
        launch: Identity of this process.
        environ: Its environment.
        devices: Folder of the device files.
        driver: File in which NVIDIA's driver gives its version.

    Returns:
        A warning where the job goes on without the machine's GPUs; None otherwise.

    Raises:
        LaunchError: GPUs would stay idle.
    """
    if torch.cuda.is_available() or gpus_are_hidden(environ):
        return None
    reserved = environ.get(RESERVED, "0").strip()
    files = sorted(x.name for x in devices.iterdir() if re.fullmatch(r"nvidia\d+", x.name))
    is_reserved = reserved.isdecimal() and int(reserved) > 0
    if not is_reserved and not files:
        return None
    if is_reserved:
        key, value = RESERVED, reserved
        what = f"SLURM has reserved GPUs on this host ({RESERVED}={reserved})"
    else:
        key, value = "GPUs", str(len(files))
        what = f"This host has GPUs ({devices / files[0]})"
    cause, fix = _cause(bool(files), driver_version(driver))
    problem = f"{what}, but torch {torch.__version__} finds none: {cause}."
    if not is_reserved and launch.world_size == launch.local_world_size:
        return f"{problem} Training uses the CPUs; {fix}, or silence this with {ON_PURPOSE}"
    raise LaunchError(
        f"{problem}\n  To use the GPUs, {fix}; to train on the CPUs, set {ON_PURPOSE}.",
        key=key,
        value=value,
        fix=fix,
    )


def _cause(has_files: bool, driver: str | None) -> tuple[str, str]:
    """Say why torch finds no GPU, and what helps."""
    if torch.version.cuda is None:
        return "it was not built for CUDA", "install one that is"
    if not has_files:
        return (
            "there is no /dev/nvidia0 here",
            "start the container with its GPUs (docker --gpus all, podman --device"
            " nvidia.com/gpu=all, apptainer --nv)",
        )
    built = f"it was built for CUDA {torch.version.cuda}"
    return (
        f"{built}, and the driver is {driver or 'not loaded'}",
        "run nvidia-smi here, and install a driver or a torch that fit each other",
    )


def refuse_shared_gpus(device: torch.device, environ: Mapping[str, str]) -> None:
    """Refuse a job in which two ranks use one GPU, which NCCL cannot join. Collective.

    Args:
        device: Device of this rank.
        environ: Its environment. NCCL takes ranks with different NCCL_HOSTID for ranks of
            different hosts.

    Raises:
        LaunchError: On every rank, with the host and the numbers of its processes and GPUs.
    """
    host = socket.gethostname()
    mine = None if device.type == "cpu" else (environ.get("NCCL_HOSTID", host), gpu_id(device))
    gathered = Ranks(None).gather((mine, host))
    ranks_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, (gpu, _) in enumerate(gathered):
        if gpu is not None:
            ranks_of[gpu].append(rank)
    for ranks in ranks_of.values():
        if len(ranks) == 1:
            continue
        host = gathered[ranks[0]][1]
        processes = sum(each == host for _, each in gathered)
        gpus = len({gpu for gpu, each in gathered if each == host})
        raise LaunchError(
            f"Ranks {ranks[0]} and {ranks[1]} use the same GPU of {host}: its {processes} processes"
            f" see {gpus} GPU{'s' if gpus > 1 else ''}.\n"
            f"  Start as many processes on a host as it has GPUs (--ntasks-per-node={gpus},"
            f" --nproc-per-node {gpus}, --num_gpus {gpus}), or reserve more GPUs.",
            key="LOCAL_WORLD_SIZE",
            value=str(processes),
            fix=f"{gpus} processes on each host",
        )


def gpu_id(device: torch.device) -> str:
    """Return what identifies a GPU, or a part of one, on its host.

    Args:
        device: Its number in this process, which may see some of the GPUs only.
    """
    return str(torch.cuda.get_device_properties(device).uuid)
