"""This process as a member of a job, in which it trains one run, or several one after the other.

It joins once: process group, failure board, watchdog and stop listener last as long as the process.
All that belongs to one run ends with it (``job.train_run``), so that a later run equals the same
run in a process by itself, bit by bit.
"""

import faulthandler
import gc
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from rich.console import Console

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.config.schema import RunConfig
from glm_dist.config.watchdog import WatchdogConfig
from glm_dist.errors import GlmDistError
from glm_dist.model.fusing import may_compile
from glm_dist.observe.black_box import log_crashes
from glm_dist.observe.log import setup_logging
from glm_dist.parallel.errors import RankFailure
from glm_dist.parallel.failures import heard_by_all, report_failure, report_mistake
from glm_dist.parallel.groups import ParallelGroups, build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.process import JobProcess, start_process
from glm_dist.stop_signals import StopListener
from glm_dist.train.preemption import StopRequest


class Member:
    """One process of a job."""

    def __init__(
        self,
        launch: LaunchEnvironment,
        process: JobProcess,
        *,
        console: Console,
        listener: StopListener,
        started: float,
    ) -> None:
        """Store the parts.

        Args:
            launch: Identity of this process.
            process: The same, once it has joined.
            console: Console of the log.
            listener: Stop requests of this process.
            started: Reading of ``time.monotonic`` before it joined.
        """
        self.launch = launch
        self.process = process
        self.console = console
        self.run_started = started
        """Reading of ``time.monotonic`` at the start of the run in progress."""
        self.listener = listener
        """Stop requests of this process."""
        self._groups: dict[tuple[Layout, timedelta], ParallelGroups] = {}
        self._num_runs = 0
        gc.freeze()  # what was imported stays; ``end_run`` need not look at it

    def begin_run(self) -> StopRequest:
        """Forget the run before, and return the stop request of the next one."""
        self._num_runs += 1
        is_first = self._num_runs == 1
        if not is_first:
            self.run_started = time.monotonic()
        self.process.progress.begin_run()
        if self.process.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.process.device)
        return StopRequest(self.listener, started=None if is_first else time.time())

    def end_run(self, config: RunConfig) -> None:
        """Let go of what only a run had: its log file, its last words, its memory."""
        self.process.board.last_words = lambda failure: None
        # Its timer writes to the log file.
        faulthandler.cancel_dump_traceback_later()
        setup_logging(self.launch.rank, console=self.console)
        if may_compile(config.compile, self.process.device):
            torch.compiler.reset()  # otherwise later models are recompilations, which have a limit
        gc.collect()
        if self.process.device.type == "cuda":
            torch.cuda.empty_cache()

    def groups(self, config: RunConfig) -> ParallelGroups:
        """Return this rank's groups in a run's layout. Collective when a layout comes first.

        Every group keeps threads until the process ends, so runs of one layout share theirs.
        """
        layout = Layout.from_config(config, self.launch.world_size)
        timeout = timedelta(minutes=config.parallel.timeout_minutes)
        key = layout, timeout
        if key not in self._groups:
            self._groups[key] = build_groups(layout, timeout)
        return self._groups[key]


def as_member(
    work: Callable[[Member], int],
    launch: LaunchEnvironment,
    *,
    timeout: timedelta,
    watchdog: WatchdogConfig,
    listener: StopListener | None,
) -> int:
    """Join the job, work in it and leave it. Collective over all ranks of the job.

    Args:
        work: Trains runs; returns the exit status, equal on all ranks.
        launch: Identity of this process.
        timeout: Time after which an unanswered collective fails.
        watchdog: Deadlines.
        listener: Has listened for stop requests since the process began; None: begins after all
            ranks have joined.

    Returns:
        What ``work`` returns, or the status of the failure that ended it: 2 a user error before
        training, 76 one in training, 1 a bug.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    setup_logging(launch.rank, console=console)
    log_crashes()
    process = start_process(launch, timeout, watchdog=watchdog, listener=listener)
    requests = listener or StopListener()
    board = process.board
    try:
        with heard_by_all(board, explain=process.watchdog.explain):
            status = work(
                Member(launch, process, console=console, listener=requests, started=started)
            )
    except RankFailure as failure:
        report_failure(board, failure)
        return failure.status
    except GlmDistError as error:
        report_mistake(board, error)
        return error.status
    requests.ignore()
    dist.barrier()
    process.watchdog.close()
    dist.destroy_process_group()
    return status
