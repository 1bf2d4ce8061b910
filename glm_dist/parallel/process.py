"""Start of a process's part in the job: device, backend, process group, failure board."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.failures import FailureBoard
from glm_dist.parallel.joining import leaving_on_request
from glm_dist.stop_signals import StopListener


@dataclass(frozen=True)
class JobProcess:
    """This process as a member of its job."""

    device: torch.device
    """Device of this rank's parameters."""
    board: FailureBoard
    """Board on which a failing rank posts its error."""


def choose_device(local_rank: int) -> torch.device:
    """Choose this process's device; without CUDA, let megatron-core run on the CPU.

    Args:
        local_rank: Number among the processes of this node; several may share a GPU.
    """
    if not torch.cuda.is_available():
        enable_cpu()
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def start_process(
    launch: LaunchEnvironment, timeout: timedelta, listener: StopListener | None = None
) -> JobProcess:
    """Join the job and choose this process's device.

    Args:
        launch: Identity of this process, from its launcher.
        timeout: Time after which an unanswered collective fails.
        listener: Stop requests of this process; one while ranks wait for each other ends them all.
            None: of a program that does not train.
    """
    if listener is None:
        return _join(launch, timeout)
    with leaving_on_request(launch, listener):
        return _join(launch, timeout)


def _join(launch: LaunchEnvironment, timeout: timedelta) -> JobProcess:
    device = choose_device(launch.local_rank)
    store: Store
    rank, world_size = launch.rank, launch.world_size
    if world_size == 1:
        # One process needs no network: an in-memory store cannot clash with another job's port.
        store = HashStore()
    else:
        address = f"tcp://{launch.master_addr}:{launch.master_port}"
        store, rank, world_size = next(rendezvous(address, rank, world_size, timeout=timeout))
        store.set_timeout(timeout)
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=PrefixStore("default", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    mirror = store.clone()  # type: ignore[attr-defined]  # missing in torch's stubs
    return JobProcess(device, FailureBoard(mirror, rank=rank, world_size=world_size))
