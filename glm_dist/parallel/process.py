"""Start of a process's part in the job: device, store, process group, failure board, watchdog."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.config.watchdog import WatchdogConfig
from glm_dist.parallel.bulletin import Bulletin
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.failures import FailureBoard
from glm_dist.parallel.joining import no_route, open_store, wait_for_ranks
from glm_dist.parallel.leaving import leaving_on_request
from glm_dist.parallel.progress import START, Deadlines, Progress
from glm_dist.parallel.watchdog import Watchdog
from glm_dist.stop_signals import StopListener


@dataclass(frozen=True)
class JobProcess:
    """This process as a member of its job."""

    device: torch.device
    """Device of this rank's parameters."""
    board: FailureBoard
    """Board on which a failing rank posts its error."""
    progress: Progress
    """Step and phase of this rank, which the watchdog reads."""
    watchdog: Watchdog
    """Thread that ends the job if it hangs."""
    store: Store
    """Store of the job; on its holder it lasts as long as this object."""


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
    launch: LaunchEnvironment,
    timeout: timedelta,
    *,
    watchdog: WatchdogConfig | None = None,
    listener: StopListener | None = None,
) -> JobProcess:
    """Join the job and choose this process's device.

    Args:
        launch: Identity of this process, from its launcher.
        timeout: Time after which an unanswered collective fails.
        watchdog: Deadlines; None: only ``timeout``, and no thread watches.
        listener: Stop requests of this process; one while ranks wait for each other ends them all.
            None: of a program that does not train.

    Raises:
        LaunchError: The other ranks cannot be reached, or are absent at the deadline.
    """
    if listener is None:
        return _start(launch, timeout, watchdog)
    with leaving_on_request(launch, listener):
        return _start(launch, timeout, watchdog)


def _start(
    launch: LaunchEnvironment, timeout: timedelta, watchdog: WatchdogConfig | None
) -> JobProcess:
    settings = watchdog or WatchdogConfig()
    device = choose_device(launch.local_rank)
    rank, world_size = launch.rank, launch.world_size
    minutes = settings.start_minutes or timeout.total_seconds() / 60
    store, connect = _join(launch, timeout, minutes)
    board = FailureBoard(connect(), rank=rank, world_size=world_size)
    bulletin = Bulletin(connect(), rank=rank, world_size=world_size)
    progress = Progress()
    deadlines = Deadlines(
        connect=minutes * 60,
        first=settings.first_minutes * 60,
        floor=settings.floor_seconds,
        factor=settings.factor,
        timeout=timeout.total_seconds(),
    )
    watch = Watchdog(progress, deadlines, board=board, bulletin=bulletin, world_size=world_size)
    if watchdog is not None:
        watch.start()
    try:
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
            store=PrefixStore("default", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    except RuntimeError as error:
        if re.search(r"gloo/transport/tcp|[Uu]nable to (find|resolve)", str(error)):
            raise no_route(launch) from error
        raise
    progress.enter(START)
    return JobProcess(device, board, progress, watch, store)


def _join(
    launch: LaunchEnvironment, timeout: timedelta, minutes: float
) -> tuple[Store, Callable[[], Store]]:
    """Meet the other ranks; return the store, and a function that opens another connection."""
    if launch.world_size == 1:
        # One process needs no network: an in-memory store cannot clash with another job's port.
        memory = HashStore()
        return memory, lambda: memory
    deadline = time.monotonic() + minutes * 60
    store = open_store(launch, deadline=deadline)
    store.set_timeout(timeout)
    # torchrun's store outlives the ranks: keys of the start before would be taken for new ones.
    prefix = f"start_{launch.restart}"
    wait_for_ranks(PrefixStore(prefix, store), launch, deadline=deadline, minutes=minutes)
    # clone is missing in torch's stubs
    return (
        PrefixStore(prefix, store),
        lambda: PrefixStore(prefix, store.clone()),  # type: ignore[attr-defined]
    )
