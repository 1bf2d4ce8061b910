"""Traces of chosen steps on chosen ranks by torch's profiler.

The host runs ahead of the device, so a traced rank waits for its device before and after the step:
the trace has all of the step's kernels and none of the step before. Other ranks do nothing special.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from glm_dist.config.schema import RunConfig
from glm_dist.files import write_atomically
from glm_dist.observe.phases import PROFILE, PhaseClock

log = logging.getLogger(__name__)

PROFILE_FOLDER = "profile"

TABLE_ROWS = 30
"""Operators in the table of a step."""


def named_range(name: str) -> AbstractContextManager[Any]:
    """Name what a block does in the trace of a step; without a profiler, do nothing."""
    is_on = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]  # torch's own use
    return record_function(name) if is_on else nullcontext()


class StepProfiler:
    """Traces steps of one rank."""

    def __init__(
        self,
        config: RunConfig,
        *,
        rank: int,
        device: torch.device,
        phases: PhaseClock,
        first_step: int,
    ) -> None:
        """Choose the steps.

        Args:
            config: Gives steps, ranks and the run folder.
            rank: This rank.
            device: The rank's device.
            phases: Clock of the loop.
            first_step: Steps done before.
        """
        chosen = config.observe.profile_steps
        self._steps = frozenset(chosen if rank in config.observe.profile_ranks else ())
        self._folder = config.run_dir / PROFILE_FOLDER
        self._rank = rank
        self._device = device
        self._phases = phases
        if self._steps and max(self._steps) <= first_step:
            log.info("nothing to profile: observe.profile_steps=%s are done", sorted(self._steps))

    @contextmanager
    def __call__(self, step: int) -> Iterator[None]:
        """Trace the block if it is a chosen step."""
        if step not in self._steps:
            yield
            return
        with self._phases(PROFILE):
            self._wait_for_device()
            trace = profile(activities=self._activities(), record_shapes=True)
            trace.start()
        try:
            with record_function(f"ProfilerStep#{step}"):  # the name that tools look for
                yield
                self._wait_for_device()
        finally:
            trace.stop()
        with self._phases(PROFILE):
            self._write(trace, step)

    def _activities(self) -> list[ProfilerActivity]:
        on_device = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        return [ProfilerActivity.CPU, *on_device]

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _write(self, trace: profile, step: int) -> None:
        """Write trace and table; training does not depend on them, so a failure is logged."""
        started = time.monotonic()
        name = f"rank_{self._rank}_step_{step}"
        path, partial = (self._folder / f"{stem}.json.gz" for stem in (name, f".{name}"))
        try:
            self._folder.mkdir(exist_ok=True)
            trace.export_chrome_trace(str(partial))
            os.replace(partial, path)
            write_atomically(path.with_name(f"{name}.txt"), self._table(trace))
        except OSError as error:
            log.warning("could not write the profile path=%s reason=%s", path, error)
            return
        log.info("profiled step=%d path=%s seconds=%.1f", step, path, time.monotonic() - started)

    def _table(self, trace: profile) -> str:
        where = "device" if self._device.type == "cuda" else "cpu"
        table: str = trace.key_averages().table(
            sort_by=f"self_{where}_time_total", row_limit=TABLE_ROWS
        )
        return table
