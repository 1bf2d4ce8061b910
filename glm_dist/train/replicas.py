"""Comparison of what several ranks hold in common: a faulty device changes weights unnoticed.

Each rank digests each of its weights on the device: the sum of the bit patterns as integers, so
one changed bit changes the digest. Replicas of a weight get the same updates and must be
bit-identical. So should be weights that tensor-parallel ranks duplicate, but they are updated from
gradients that each rank computes itself; if these differ, that is reported and training goes on.
"""

import logging
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from glm_dist.config.schema import RunConfig
from glm_dist.errors import TrainingError
from glm_dist.observe.phases import RECORD
from glm_dist.observe.sinks import MetricSink
from glm_dist.parallel.errors import Ranks
from glm_dist.parallel.layout import Coordinates
from glm_dist.train.divergence import replicas_differ
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.step_done import StepDone

log = logging.getLogger(__name__)

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Digests:
    """Digests of the weights of one rank."""

    rank: int
    host: str
    coordinates: Coordinates
    by_name: dict[str, int]


def digests(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Digest each tensor: the sum of its bit patterns as integers, modulo 2^64 [n]."""
    return torch.stack(
        [
            tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
            for tensor in tensors
        ]
    )


def differing(held: Sequence[Digests]) -> tuple[list[Digests], str, bool]:
    """Find the ranks that differ from the majority of those that should hold the same.

    Args:
        held: Digests of ranks with the same weights, in rank order.

    Returns:
        Those ranks, their first weight that differs, and whether a majority agrees; without one,
        all ranks. No ranks if all agree.
    """
    for name in held[0].by_name:
        counts = Counter(each.by_name[name] for each in held)
        if len(counts) == 1:
            continue
        digest, number = counts.most_common(1)[0]
        if 2 * number > len(held):
            return [each for each in held if each.by_name[name] != digest], name, True
        return list(held), name, False
    return [], "", True


class ReplicaCheck:
    """Observer that compares weights."""

    phase = RECORD

    def __init__(self, config: RunConfig, engine: TrainingEngine, *, sink: MetricSink) -> None:
        """Choose the weights to compare; ZeRO 3 has none.

        Args:
            config: The run's configuration.
            engine: Model of this rank.
            sink: Takes an event if weights differ.
        """
        self._config = config
        self._engine = engine
        self._sink = sink
        self._interval = config.stability.compare_replicas_interval
        if self._interval > 0 and config.zero.stage == 3:
            log.info("no replicas are compared, because ZeRO 3 shards every weight")
            self._interval = 0

    def due(self, done: StepDone) -> bool:
        """See ``Observer``; the last step as well."""
        return self._interval > 0 and (done.step % self._interval == 0 or done.is_last)

    def act(self, done: StepDone) -> None:
        """Compare.

        Raises:
            TrainingError: On every rank: replicas differ.
        """
        groups, shards = self._engine.groups, self._engine.shards
        found = digests([shard.parameter for shard in shards])
        duplicates = [i for i, shard in enumerate(shards) if shard.tensor_dim is None]
        differs = torch.stack(
            [
                _differs(found, groups.data),
                _differs(found[duplicates], groups.tensor),
            ]
        )
        dist.all_reduce(differs, op=dist.ReduceOp.MAX, group=groups.world)
        replicas_do, duplicates_do = differs.tolist()
        if not replicas_do and not duplicates_do:
            return
        ranks = Ranks(None)
        values = dict(zip((s.name for s in shards), found.tolist(), strict=True))
        names = {shards[i].name for i in duplicates}
        held = ranks.gather(
            Digests(
                ranks.rank,
                socket.gethostname(),
                groups.coordinates,
                values
                if replicas_do
                else {name: digest for name, digest in values.items() if name in names},
            )
        )
        self._report(done.step, held, replicas=bool(replicas_do))

    def _report(self, step: int, held: Sequence[Digests], *, replicas: bool) -> None:
        """Write an event for each group of ranks that differ; raise if they are replicas."""
        error: TrainingError | None = None
        by_group: dict[tuple[int, int], list[Digests]] = {}
        for each in held:
            own = each.coordinates
            key = (own.pipeline, own.tensor if replicas else own.data)
            by_group.setdefault(key, []).append(each)
        for members in by_group.values():
            odd, name, is_majority = differing(members)
            if not odd:
                continue
            shown = ", ".join(f"rank {each.rank} on {each.host}" for each in odd)
            kind = "replicas_differ" if replicas else "duplicates_differ"
            details: dict[str, str | float] = {"ranks": shown, "tensor": name, "of": len(members)}
            self._sink.event(step, kind, details)
            if not replicas:
                log.warning("tensor-parallel duplicates differ tensor=%s ranks=%s", name, shown)
            elif error is None:
                error = replicas_differ(
                    self._config, step=step, ranks=shown, tensor=name, is_majority=is_majority
                )
        if error is not None:
            raise error


def _differs(found: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return 1 [] if digests [n] differ within a group, else 0."""
    ends = torch.stack([found, ~found])  # ~x falls where x rises, without overflow
    dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=group)
    return (ends[0] != ~ends[1]).any().to(torch.int32)
