"""Rows to micro-batches, ahead of time: what one replica reads in each step.

Rows come in items: one row in pretraining, all rows of an example in finetuning. The items of step
``t`` are ``t*G … t*G + G - 1`` for a global batch of ``G``; a replica takes its contiguous share
and cuts it into micro-batches in order, so an item is never split. Workers change when a
micro-batch is built, never what is in it. There is no end of data.
"""

import atexit
import ctypes
import faulthandler
import logging
import multiprocessing
import os
import re
import signal
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from multiprocessing.process import BaseProcess
from typing import Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Row
from glm_dist.errors import DataError, GlmDistError
from glm_dist.stop_signals import STOP_SIGNALS

END_SIGNAL = signal.SIGVTALRM
"""Signal by which a rank, or its death, ends workers that are left over; launchers do not send it.
"""

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl


class TrainingRows(Protocol):
    """Source of training rows; ``RowSource`` in pretraining."""

    def rows(self, number: int) -> Sequence[Row]:
        """Build all rows of item ``number``, 0, 1, 2, … without end; equally many for each."""


@dataclass(frozen=True)
class StepRows:
    """Items that a replica reads in a step."""

    global_batch_size: int
    micro_batch_size: int
    replica: int
    num_replicas: int

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches this replica reads in a step."""
        return self.global_batch_size // self.num_replicas // self.micro_batch_size

    def indices(self, micro_batch: int) -> range:
        """Give the numbers of a micro-batch's items.

        Args:
            micro_batch: Number counted from the first step on.
        """
        step, place = divmod(micro_batch, self.micro_batches_per_step)
        of_replica = self.global_batch_size // self.num_replicas
        first = step * self.global_batch_size + self.replica * of_replica
        first += place * self.micro_batch_size
        return range(first, first + self.micro_batch_size)


class TrainingBatches:
    """Iterator over steps; each item is the list of this replica's micro-batches."""

    def __init__(self, micro_batches: "Iterator[MicroBatch | _Failure]", *, per_step: int) -> None:
        """Group micro-batches.

        Args:
            micro_batches: Micro-batches in order, without end.
            per_step: How many make a step.
        """
        self._micro_batches = micro_batches
        self._per_step = per_step

    def __iter__(self) -> "TrainingBatches":
        return self

    def __next__(self) -> list[MicroBatch]:
        """Wait for the next step's micro-batches.

        Raises:
            GlmDistError: Whatever stopped a worker, as it was raised there.
        """
        step = []
        for _ in range(self._per_step):
            item = self._next()
            if isinstance(item, _Failure):
                raise item.error
            step.append(item)
        return step

    def _next(self) -> "MicroBatch | _Failure":
        try:
            return next(self._micro_batches)
        except RuntimeError as error:
            if not re.search(r"worker .*killed by signal: Bus error", str(error)):
                raise
            raise DataError(
                "A data worker was ended by SIGBUS: a corpus file became shorter while it was read,"
                " or /dev/shm is full.\n"
                "  Run `glm-dist data validate` on the corpora; the rank's log has the worker's"
                " stack.",
                key="data.corpora",
                fix="glm-dist data validate <prefix>",
            ) from error

    def close(self) -> None:
        """Stop the workers."""
        # The worker processes end when their iterator is collected.
        self._micro_batches = iter(())


def training_batches(
    source: TrainingRows,
    *,
    start_step: int,
    global_batch_size: int,
    micro_batch_size: int,
    replica: int,
    num_replicas: int,
    num_workers: int,
    prefetch: int,
) -> TrainingBatches:
    """Read training rows step by step.

    Args:
        source: Builds rows; is copied into the workers.
        start_step: First step to read; the step after the last one done when resuming.
        global_batch_size: Items of a step over all replicas; a multiple of replicas times
            ``micro_batch_size``.
        micro_batch_size: Items of a micro-batch.
        replica: Number of this replica.
        num_replicas: Replicas that share a step.
        num_workers: Processes that build rows; 0 builds them in ``next``.
        prefetch: Micro-batches each worker keeps ready.
    """
    plan = StepRows(global_batch_size, micro_batch_size, replica, num_replicas)
    first = start_step * plan.micro_batches_per_step
    rows = _MicroBatches(source, plan, first)
    if num_workers == 0:
        return TrainingBatches(iter(rows), per_step=plan.micro_batches_per_step)
    loader: DataLoader[MicroBatch | _Failure] = DataLoader(
        rows,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork",
        # Without its own generator the loader draws from the global one, and dropout would depend
        # on the number of workers.
        generator=torch.Generator(),
        worker_init_fn=_prepare_worker,
    )
    others = multiprocessing.active_children()
    batches = TrainingBatches(iter(loader), per_step=plan.micro_batches_per_step)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    # At exit multiprocessing ends children by TERM, which these ignore, and waits for them. What is
    # registered later runs earlier.
    atexit.register(_end_workers, weakref.ref(batches), workers)
    return batches


def _end_workers(batches: weakref.ref[TrainingBatches], workers: Sequence[BaseProcess]) -> None:
    """End them as torch does or, where a traceback keeps their iterator alive, by a signal."""
    alive = batches()
    if alive is not None:
        alive.close()
    for worker in workers:
        if worker.is_alive() and worker.pid is not None:
            os.kill(worker.pid, END_SIGNAL)


def _prepare_worker(worker: int) -> None:
    """Leave it to the rank when to stop, which has a step to finish.

    Launchers signal all descendants of theirs alike.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(END_SIGNAL, lambda *_: os._exit(0))
    if sys.platform == "linux":
        # Otherwise they outlive a killed rank by seconds, and some print a traceback then.
        rank = multiprocessing.parent_process()
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, END_SIGNAL)
        if rank is not None and os.getppid() != rank.pid:
            os._exit(0)
    # torch takes SIGBUS for a lack of shared memory; here a file that was cut short is likelier.
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            faulthandler.disable()
            faulthandler.enable(file=handler.stream, all_threads=True)


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker; torch would rebuild it from its text alone."""

    error: GlmDistError


class _MicroBatches(IterableDataset["MicroBatch | _Failure"]):
    """Micro-batches from a first one on; worker ``w`` of ``n`` builds every n-th."""

    def __init__(self, source: TrainingRows, plan: StepRows, first: int) -> None:
        self._source = source
        self._plan = plan
        self._first = first

    def __iter__(self) -> "Iterator[MicroBatch | _Failure]":
        worker = get_worker_info()
        number, step = (
            (self._first, 1)
            if worker is None
            else (
                self._first + worker.id,
                worker.num_workers,
            )
        )
        while True:
            try:
                items = self._plan.indices(number)
                rows = [row for item in items for row in self._source.rows(item)]
            except GlmDistError as error:
                yield _Failure(error)
                return
            micro_batch = MicroBatch.stack(rows)
            if worker is not None:
                try:
                    _share(micro_batch)
                except RuntimeError as error:
                    yield _Failure(_no_shared_memory(error))
                    return
            yield micro_batch
            number += step


def _share(micro_batch: MicroBatch) -> None:
    """Move tensors to shared memory now: later, torch does it in a thread whose errors are lost.

    Raises:
        RuntimeError: There is no room.
    """
    for field in fields(micro_batch):
        value = getattr(micro_batch, field.name)
        if isinstance(value, torch.Tensor):
            value.share_memory_()  # type: ignore[no-untyped-call]


def _no_shared_memory(error: RuntimeError) -> DataError:
    reason = (str(error).splitlines() or [""])[0]
    return DataError(
        f"A data worker has no room in shared memory for its rows ({reason}).\n"
        "  Enlarge /dev/shm (docker run --shm-size 8g; in Kubernetes an emptyDir with medium:"
        " Memory), or set data.num_workers=0.",
        key="data.num_workers",
        value=reason,
        fix="data.num_workers=0",
    )
