"""Run a check in several real processes over gloo and bring its results, or its failure, back."""

import multiprocessing
import os
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_SECONDS = 300


def run_ranks(
    check: Callable[..., Any], *args: Any, world_size: int, timeout: float = TIMEOUT_SECONDS
) -> list[Any]:
    """Call ``check(*args)`` on every rank of a fresh gloo job.

    Args:
        check: A top-level function; its result must be picklable.
        *args: Passed on to every rank.
        world_size: Processes to start.
        timeout: Seconds after which the job is killed and the test fails.

    Returns:
        What each rank returned, in rank order.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [
            context.Process(target=_rank, args=(rank, world_size, store, results, check, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            return _collect(processes, results, timeout=timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(processes: list[Any], results: Any, *, timeout: float) -> list[Any]:
    answers: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(answers) < len(processes):
        try:
            rank, error, value = results.get(timeout=1.0)
        except queue.Empty:
            dead = [r for r, p in enumerate(processes) if p.exitcode not in (None, 0)]
            assert not dead or not results.empty(), f"ranks {dead} died without a word"
            assert time.monotonic() < deadline, (
                f"no answer from ranks {sorted(set(range(len(processes))) - set(answers))} "
                f"within {timeout} s"
            )
            continue
        assert error is None, f"rank {rank} failed:\n{error}"
        answers[rank] = value
    return [answers[rank] for rank in range(len(processes))]


def _rank(
    rank: int,
    world_size: int,
    store: str,
    results: Any,
    check: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
    )
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        value = check(*args)
        dist.barrier()
        results.put((rank, None, value))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        raise
