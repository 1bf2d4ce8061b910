"""Run a check in several real processes and bring its results, or its failure, back.

Ranks on CPUs are forked from a server that has imported torch, megatron-core and deepspeed and done
nothing else: a rank starts in milliseconds, without the threads and locks of the tests' process.
"""

import atexit
import contextlib
import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.environment import CPU_ONLY, ONE_THREAD, SEVERAL_RANKS_ON_ONE_GPU

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 300


def run_ranks(
    check: Callable[..., Any],
    *args: Any,
    world_size: int,
    timeout: float = TIMEOUT_SECONDS,
    device: str = "cpu",
) -> list[Any]:
    """Call ``check(*args)`` on every rank of a fresh job.

    Args:
        check: A top-level function; its result must be picklable.
        *args: Passed on to every rank.
        world_size: Processes to start.
        timeout: Seconds after which the job is killed and the test fails.
        device: "cpu" hides every GPU and joins the ranks by gloo. "cuda" joins them by NCCL too,
            several on a GPU where there are fewer GPUs than ranks.

    Returns:
        What each rank returned, in rank order.

    Raises:
        AssertionError: A rank raised, with its traceback; or it died, or did not answer in time.
    """
    with _started(check, args, world_size=world_size, device=device) as (processes, results):
        return _collect(processes, results, timeout=timeout)


def exit_codes(
    check: Callable[..., Any], *args: Any, world_size: int, timeout: float = TIMEOUT_SECONDS
) -> list[int | None]:
    """Call ``check(*args)`` as ``run_ranks`` does; how each rank ended, None where it did not."""
    deadline = time.monotonic() + timeout
    with _started(check, args, world_size=world_size, device="cpu") as (processes, _):
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in processes]


def run_programs(
    main: Callable[[], int],
    arguments: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> list[subprocess.CompletedProcess[str]]:
    """Run a program in fresh processes side by side, which need not import anything heavy first.

    Args:
        main: The program, a top-level function that returns the exit status.
        arguments: Its command line, with its name.
        environments: Whole environment of each process.
        timeout: Seconds after which all are killed and the test fails.

    Returns:
        Exit status, standard output and standard error of each.
    """
    with started_programs(main, arguments, environments) as programs:
        hung = programs.wait(timeout)
        assert not hung, f"processes {hung} did not end within {timeout} s"
        return programs.results()


class Programs:
    """Processes of ``started_programs``."""

    def __init__(self, arguments: Sequence[str], processes: list[BaseProcess], folder: Path):
        self._arguments = list(arguments)
        self._folder = folder
        self.processes = processes

    def wait(self, timeout: float) -> list[int]:
        """Wait for all to end; return the pids of those that did not."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [p.pid for p in self.processes if p.exitcode is None and p.pid is not None]

    def results(self) -> list[subprocess.CompletedProcess[str]]:
        """Exit status and output of each; of a running one, its output so far."""
        return [
            subprocess.CompletedProcess(
                self._arguments,
                process.exitcode if process.exitcode is not None else -1,
                *(self._read(number, end) for end in (".out", ".err")),
            )
            for number, process in enumerate(self.processes)
        ]

    def _read(self, number: int, end: str) -> str:
        file = self._folder / f"{number}{end}"
        return file.read_text(errors="replace") if file.exists() else ""


@contextlib.contextmanager
def started_programs(
    main: Callable[[], int], arguments: Sequence[str], environments: Sequence[Mapping[str, str]]
) -> Iterator[Programs]:
    """Start what ``run_programs`` starts; processes still running at the end are killed."""
    context = _context("cpu")
    with tempfile.TemporaryDirectory() as folder:
        processes: list[BaseProcess] = [
            context.Process(
                target=_program,
                args=(variables, str(Path(folder) / str(number)), main, list(arguments)),
            )
            for number, variables in enumerate(environments)
        ]
        try:
            for process in processes:
                process.start()
            yield Programs(arguments, processes, Path(folder))
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _program(
    variables: Mapping[str, str], output: str, main: Callable[[], int], arguments: list[str]
) -> None:
    """Become a program: its environment, command line and files, then its exit status."""
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    for number, end in ((1, ".out"), (2, ".err")):
        file = os.open(output + end, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    _replace_environment(variables)
    os.chdir(ROOT)
    sys.argv = arguments
    try:
        sys.exit(main())
    finally:
        # As at the end of a program; multiprocessing ends its children without.
        atexit._run_exitfuncs()


@contextlib.contextmanager
def _started(
    check: Callable[..., Any], args: tuple[Any, ...], *, world_size: int, device: str
) -> Iterator[tuple[list[BaseProcess], Any]]:
    """Running ranks and the queue of their answers; all of them end with the block."""
    context = _context(device)
    results: Any = context.Queue()
    processes: list[BaseProcess] = []
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        try:
            for rank in range(world_size):
                variables = {**os.environ, **_variables(rank, world_size, device)}
                process = context.Process(
                    target=_rank, args=(variables, store, results, device, check, args)
                )
                with environment(variables):
                    process.start()
                processes.append(process)
            yield processes, results
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _context(device: str) -> Any:
    """Return the start method: spawn on GPUs, since a process that uses CUDA must not be forked."""
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    _start_server()
    return multiprocessing.get_context("forkserver")


@cache
def _start_server() -> None:
    """Start the fork server with this checkout's package first and no GPU in sight."""
    forkserver.set_forkserver_preload(["tests.preload"])
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"PYTHONWARNINGS": "ignore::UserWarning"}  # megatron-core's, of optional libraries
    variables = {"PYTHONPATH": os.pathsep.join(paths), **quiet, **CPU_ONLY, **ONE_THREAD}
    with environment({**os.environ, **variables}):
        forkserver.ensure_running()


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Make these the whole environment while the block runs: what starts in it inherits them."""
    before = dict(os.environ)
    try:
        _replace_environment(variables)
        yield
    finally:
        _replace_environment(before)


def _replace_environment(variables: Mapping[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _variables(rank: int, world_size: int, device: str) -> dict[str, str]:
    """Return a rank's environment: the launcher's variables, and the ones that pin its device."""
    launched = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        **ONE_THREAD,
    }
    if device == "cpu":
        return {**launched, **CPU_ONLY}
    local = {"LOCAL_RANK": str(rank % torch.cuda.device_count())}
    return {**launched, **SEVERAL_RANKS_ON_ONE_GPU, **local, "NCCL_HOSTID": f"h{rank}"}


def _collect(processes: list[BaseProcess], results: Any, *, timeout: float) -> list[Any]:
    answers: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(answers) < len(processes):
        try:
            rank, error, value = results.get(timeout=1.0)
        except queue.Empty:
            dead = _ended(processes)
            assert not dead or not results.empty(), f"ended without a word: {dead}"
            assert time.monotonic() < deadline, (
                f"no answer from ranks {sorted(set(range(len(processes))) - set(answers))} "
                f"within {timeout} s"
            )
            continue
        assert error is None, f"rank {rank} failed; {_others(rank, processes)}:\n{error}"
        answers[rank] = value
    return [answers[rank] for rank in range(len(processes))]


def _ended(processes: list[BaseProcess]) -> str:
    """Ranks that ended with an exit code other than 0, and that code."""
    codes = {rank: process.exitcode for rank, process in enumerate(processes)}
    return ", ".join(f"rank {rank} with {code}" for rank, code in codes.items() if code)


def _others(rank: int, processes: list[BaseProcess]) -> str:
    """Return how the others ended: if a rank was killed, a survivor only reports the lost peer."""
    others = [process for other, process in enumerate(processes) if other != rank]
    wait([process.sentinel for process in others], timeout=1.0)
    return f"ended: {_ended(processes) or 'none'}"


def _end_with_the_tests() -> None:
    """Exit when the tests' process has ended for any reason: nobody waits for this rank then."""
    tests = multiprocessing.parent_process()
    assert tests is not None
    wait([tests.sentinel])
    os._exit(1)


def _rank(
    variables: Mapping[str, str],
    store: str,
    results: Any,
    device: str,
    check: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    # A forked rank has the server's environment, from before the test.
    _replace_environment(variables)
    rank, world_size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    torch.set_num_threads(1)
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(variables["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(
            backend,
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
