"""Validation loss of each objective, over the same rows in every layout."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Row
from glm_dist.model.batch import StageBatch
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.train.task import Task, TaskLoss

Batch = TypeVar("Batch")

BATCHES_PER_STAGE = 8
"""Micro-batches between two votes on a stop, for each stage: the pipeline's bubble stays below an
eighth of the time."""


def replica_rows(
    rows_of: Callable[[int], Sequence[Row]],
    num_items: int,
    *,
    micro_batch_size: int,
    groups: ParallelGroups,
) -> Iterator[MicroBatch]:
    """Yield this replica's share of the validation items, in whole micro-batches.

    Micro-batches are dealt to replicas in turn: with ``b`` items each and ``r`` replicas, batch
    ``i`` of a replica holds items ``(i * r + replica) * b`` and on. Items without targets and label
    fill up the last round, and the rounds that the pipeline's schedule requires, so that every rank
    runs the same number of forward passes.

    Args:
        rows_of: All rows of a validation item, by index.
        num_items: Items to evaluate, over all replicas.
        micro_batch_size: Items of a forward pass.
        groups: This rank's process groups.
    """
    replicas, replica = groups.layout.data_parallel_size, groups.coordinates.data
    round_size = micro_batch_size * replicas
    multiple = groups.layout.micro_batch_multiple
    num_rounds = -(-num_items // (round_size * multiple)) * multiple
    for first in range(replica * micro_batch_size, num_rounds * round_size, round_size):
        rows: list[Row] = []
        for index in range(first, first + micro_batch_size):
            found = rows_of(index % num_items)
            if index >= num_items:
                found = [replace(row, loss_mask=row.loss_mask & False, label=-1) for row in found]
            rows += found
        yield MicroBatch.stack(rows)


class Evaluator(Protocol):
    """Interface of a model that computes losses: an engine in training, otherwise a loaded run."""

    @property
    def groups(self) -> ParallelGroups:
        """This rank's process groups."""

    @property
    def task(self) -> Task:
        """Turns rows into batches and hidden states into losses."""

    def evaluate(self, batches: Sequence[StageBatch]) -> list[TaskLoss]:
        """Compute losses without dropout and gradients; empty but on the last stage."""


class EvaluationRows(Protocol):
    """Held-out rows of several corpora."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives."""

    def names(self) -> tuple[str, ...]:
        """Return the names of the corpora."""

    def row(self, objective: str, corpus: str, index: int) -> Row:
        """Build a row; the same for the same arguments."""


def groups_of_batches(
    batches: Iterable[Batch], groups: ParallelGroups
) -> Iterator[Sequence[Batch]]:
    """Cut batches into groups, each long enough to keep the pipeline busy."""
    multiple = groups.layout.micro_batch_multiple
    size = BATCHES_PER_STAGE * groups.layout.pipeline_parallel_size
    size = -(-size // multiple) * multiple
    remaining = iter(batches)
    while group := list(islice(remaining, size)):
        yield group


def _single_row(rows: EvaluationRows, objective: str, corpus: str, index: int) -> tuple[Row]:
    """Return an item that is one row."""
    return (rows.row(objective, corpus, index),)


def validation_losses(
    model: Evaluator,
    rows: EvaluationRows,
    *,
    num_rows: int,
    micro_batch_size: int,
    device: torch.device,
    stops: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Compute the mean loss per predicted token of each objective. Collective over all ranks.

    Args:
        model: Model of this rank.
        rows: Source of the rows. Every corpus has the same number of them.
        num_rows: Rows of each objective, over all corpora; each corpus has at least one.
        micro_batch_size: Rows of a forward pass.
        device: The rank's device.
        stops: Asked between groups of batches, on all ranks alike; if true, there is no result.

    Returns:
        Nats per token, equal on all ranks, by ``objective`` and, if there are several corpora, by
        ``objective/corpus``. Entries without targets are left out. None after a stop.
    """
    groups, task, corpora = model.groups, model.task, rows.names()
    keys = [(objective, corpus) for objective in rows.objectives for corpus in corpora]
    sums = torch.zeros(len(keys), 2, dtype=torch.float64, device=device)
    for i, (objective, corpus) in enumerate(keys):
        batches = [
            task.batch(batch, device)
            for batch in replica_rows(
                partial(_single_row, rows, objective, corpus),
                -(-num_rows // len(corpora)),
                micro_batch_size=micro_batch_size,
                groups=groups,
            )
        ]
        losses: list[TaskLoss] = []
        for group in groups_of_batches(batches, groups):
            if stops():
                return None
            losses += model.evaluate(group)
        if groups.reports_loss:
            sums[i, 0] = torch.stack([loss.total for loss in losses]).sum()
            sums[i, 1] = sum(task.weight(batch) for batch in batches)
    dist.all_reduce(sums, group=groups.world)
    by_objective = sums.view(len(rows.objectives), len(corpora), 2)
    found = dict(zip(rows.objectives, by_objective.sum(dim=1).tolist(), strict=True))
    if len(corpora) > 1:
        found |= {f"{o}/{c}": both for (o, c), both in zip(keys, sums.tolist(), strict=True)}
    return {name: total / count for name, (total, count) in found.items() if count > 0}
