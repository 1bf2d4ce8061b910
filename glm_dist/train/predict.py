"""Scores of all examples of a set, in order and on every rank, in any layout."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from glm_dist.data.rows import Row
from glm_dist.model.batch import StageBatch
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.train.evaluate import groups_of_batches, replica_rows
from glm_dist.train.task import Task


class Predictor(Protocol):
    """Interface of a model that rates answers: an engine in training, otherwise a loaded run."""

    @property
    def groups(self) -> ParallelGroups:
        """This rank's process groups."""

    @property
    def task(self) -> Task:
        """A ``ScoringTask``."""

    def predict(self, batches: Sequence[StageBatch]) -> list[torch.Tensor]:
        """Rate answers without dropout and gradients; empty but on the last stage."""


def predict_examples(
    model: Predictor,
    rows_of: Callable[[int], Sequence[Row]],
    *,
    num_examples: int,
    micro_batch_size: int,
    device: torch.device,
    stops: Callable[[], bool] = lambda: False,
) -> torch.Tensor | None:
    """Rate the answers of every example. Collective over all ranks.

    Args:
        model: Model of this rank, whose task is a ``ScoringTask``.
        rows_of: All rows of an example, by index; the same on all ranks of a replica.
        num_examples: Examples, over all replicas; at least 1.
        micro_batch_size: Examples of a forward pass.
        device: The rank's device.
        stops: Asked between groups of batches, on all ranks alike; if true, there is no result.

    Returns:
        Scores [n, c] in fp32 on the CPU, in the order of the examples, equal on every rank. None
        after a stop.
    """
    groups = model.groups
    batches = replica_rows(rows_of, num_examples, micro_batch_size=micro_batch_size, groups=groups)
    found: list[torch.Tensor] = []
    for group in groups_of_batches(batches, groups):
        if stops():
            return None
        found += model.predict([model.task.batch(batch, device) for batch in group])
    return _gather(found, micro_batch_size, groups=groups, device=device)[:num_examples].cpu()


def _gather(
    found: Sequence[torch.Tensor], size: int, *, groups: ParallelGroups, device: torch.device
) -> torch.Tensor:
    """Put together the scores of all replicas, as ``replica_rows`` deals examples to them.

    Args:
        found: Scores [size, c] of each of this replica's batches on the last stage; else empty.
        size: Examples of a batch.
        groups: This rank's process groups.
        device: The rank's device.
    """
    reports = groups.reports_loss
    shape = [len(found), found[0].size(1)] if reports else [0, 0]
    counts = torch.tensor(shape, device=device)
    dist.all_reduce(counts, op=dist.ReduceOp.MAX, group=groups.world)  # other stages have none
    num_batches, num_answers = counts.tolist()
    replicas = groups.layout.data_parallel_size
    # One rank of each replica fills its part; adding zeros changes no value.
    scores = torch.zeros(num_batches, replicas, size, num_answers, device=device)
    if reports:
        scores[:, groups.coordinates.data] = torch.stack([each.float() for each in found])
    dist.all_reduce(scores, group=groups.world)
    return scores.view(-1, num_answers)
