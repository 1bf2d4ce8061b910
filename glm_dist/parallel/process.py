"""Start and end of a process's part in the job: device, backend, process group."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.parallel.cpu import enable_cpu


def start_process(launch: LaunchEnvironment, timeout: timedelta) -> torch.device:
    """Join the job and choose this process's device.

    Args:
        launch: Who this process is, as its launcher says.
        timeout: Time after which a collective without an answer fails.

    Returns:
        The device that holds this rank's parameters.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", launch.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
        # DeepSpeed takes its device from here, and a task that sees one GPU only calls it 0.
        os.environ["LOCAL_RANK"] = str(device.index)
    else:
        enable_cpu()
        device, backend = torch.device("cpu"), "gloo"
    # DeepSpeed insists on finding it, and only some launchers export it.
    os.environ.setdefault("LOCAL_RANK", str(launch.local_rank))
    if launch.world_size == 1:
        # One process needs no network: a store in memory cannot clash with another job's port.
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{launch.master_addr}:{launch.master_port}",
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timeout,
        )
    return device
