"""Notice of ranks that are slower than the others.

Under synchronous training every rank has the same time per step, because the fast ones wait. So
each rank measures its own time: waiting for rows, which no other rank influences, and the forward
and backward pass up to the reduction of gradients. With tensor or pipeline parallelism that pass
contains waits for ranks of the same replica, so it is compared between replicas, and a slow replica
is named by all its ranks. ZeRO 2 and 3 exchange data during the pass: only forward is timed, and
under ZeRO 3 its gathers hide part of a difference. A slow update or network is not seen.
"""

import logging
import statistics
from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.distributed as dist

from glm_dist.observe.phases import RECORD
from glm_dist.observe.sinks import MetricSink
from glm_dist.parallel.layout import Layout
from glm_dist.train.observers import StepDone
from glm_dist.train.own_time import OwnTime

log = logging.getLogger(__name__)

Unit: TypeAlias = tuple[int, ...]
"""One rank, or the ranks of a replica."""

INTERVAL_STEPS = 5
"""Steps between comparisons."""

MIN_SECONDS = 0.005
"""Smallest difference per step that is reported; below it is the noise of a machine."""


def find_stragglers(
    data: Sequence[float], compute: Sequence[float], *, layout: Layout, share: float
) -> dict[Unit, tuple[float, float]]:
    """Compare the ranks' own times.

    Args:
        data: Seconds per step that each rank waits for rows.
        compute: Seconds per step of each rank's forward and backward pass.
        layout: Sizes of the axes.
        share: Excess over the median of the others that counts, as a share of that median's step.

    Returns:
        Ranks of each slow rank or replica -> its seconds, and the median of the others.
    """
    ranks = range(layout.world_size)
    replicas: dict[int, list[int]] = {}
    for rank in ranks:
        replicas.setdefault(layout.coordinates(rank).data, []).append(rank)
    model_ranks = layout.world_size // len(replicas)
    if model_ranks == 1:
        units: dict[Unit, float] = {(rank,): data[rank] + compute[rank] for rank in ranks}
        return _slow(units, units, share)
    passes: dict[Unit, float] = {
        tuple(members): statistics.median(compute[rank] for rank in members)
        for members in replicas.values()
    }
    rows: dict[Unit, float] = {(rank,): data[rank] for rank in ranks}
    step: dict[Unit, float] = {(rank,): data[rank] + compute[rank] for rank in ranks}
    return _slow(passes, passes, share) | _slow(rows, step, share)


def _slow(
    times: dict[Unit, float], whole: dict[Unit, float], share: float
) -> dict[Unit, tuple[float, float]]:
    """Return the units that exceed the median of the others by a share of the others' whole."""
    found = {}
    for unit, seconds in times.items():
        others = [other for name, other in times.items() if name != unit]
        if not others:
            continue
        normal = statistics.median(others)
        step = statistics.median(other for name, other in whole.items() if name != unit)
        if seconds - normal > max(share * step, MIN_SECONDS):
            found[unit] = (seconds, normal)
    return found


class StragglerWatch:
    """Observer that exchanges the ranks' own times and names the slow ones."""

    phase = RECORD

    def __init__(
        self,
        share: float,
        *,
        compute: OwnTime,
        data: OwnTime,
        layout: Layout,
        rank: int,
        sink: MetricSink,
    ) -> None:
        """Prepare.

        Args:
            share: See ``find_stragglers``; 0 compares nothing.
            compute: Timer of this rank's passes.
            data: Timer of this rank's waits for rows.
            layout: Sizes of the axes.
            rank: This rank.
            sink: Takes an event for each change.
        """
        self._share = share
        self._compute = compute
        self._data = data
        self._layout = layout
        self._rank = rank
        self._sink = sink
        self._named: set[Unit] = set()

    def due(self, done: StepDone) -> bool:
        """See ``Observer``; also closes the step on this rank."""
        for timer in (self._compute, self._data):
            if done.is_first:
                timer.discard()
            else:
                timer.end_step()
        is_on = self._share > 0 and self._layout.world_size > 1
        return is_on and done.step % INTERVAL_STEPS == 0

    def act(self, done: StepDone) -> None:
        """Exchange the times on the host and warn of changes."""
        times = torch.zeros(2, self._layout.world_size, dtype=torch.float64)
        times[0, self._rank] = self._data.median()
        times[1, self._rank] = self._compute.median()
        dist.all_reduce(times)
        data, compute = times.tolist()
        if min(compute) == 0.0:
            return  # some rank has not timed enough steps
        found = find_stragglers(data, compute, layout=self._layout, share=self._share)
        for ranks, (seconds, normal) in found.items():
            if ranks not in self._named and self._rank == 0:
                named = ", ".join(map(str, ranks))
                log.warning(
                    "slow rank=%s step=%d own_seconds=%.3f others=%.3f host: see heartbeat/",
                    named,
                    done.step,
                    seconds,
                    normal,
                )
                self._sink.event(
                    done.step,
                    "straggler",
                    {"rank": named, "seconds": round(seconds, 4), "others": round(normal, 4)},
                )
        for ranks in self._named - found.keys():
            log.info("rank=%s keeps pace again step=%d", ", ".join(map(str, ranks)), done.step)
        self._named = set(found)
