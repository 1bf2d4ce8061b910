"""Sinks for records: metrics.jsonl, which is authoritative, the console, W&B and TensorBoard.

A sink is used by rank 0 between collectives, so it must not raise: that would leave the other
ranks waiting. A failure is logged once, and training continues. The exception is ``FencedSink``,
whose error ends the job.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from rich.console import Console

from glm_dist.config.schema import RunConfig, WandbMode
from glm_dist.observe.console import ConsoleSink
from glm_dist.observe.events import EVENTS_FILE, EventsSink
from glm_dist.observe.goodput_meter import GoodputMeter
from glm_dist.observe.metrics import TRAIN_LOSS
from glm_dist.observe.metrics_file import METRICS_FILE, REWOUND, encode, repair_last_line
from glm_dist.observe.phases import PhaseClock
from glm_dist.observe.tensorboard_sink import TensorBoardSink
from glm_dist.observe.wandb_sink import WandbSink

log = logging.getLogger(__name__)

Details: TypeAlias = Mapping[str, str | float]

MAX_HELD_BYTES = 16 * 2**20
"""Records held back while the disk is full, about 20,000 of them; the oldest are dropped beyond."""


class MetricSink(Protocol):
    """Interface of a destination for metrics and events."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics by name after a step."""

    def event(self, step: int, kind: str, details: Details) -> None:
        """Record an event, such as a checkpoint and its path."""

    def close(self) -> None:
        """Release resources; the sink is not used afterwards."""


class SinkGroup:
    """Several sinks as one; empty on ranks that do not record."""

    def __init__(
        self, sinks: Sequence[MetricSink] = (), *, goodput: GoodputMeter | None = None
    ) -> None:
        """Store the sinks; each record goes to them in this order.

        Args:
            sinks: Destinations.
            goodput: Adds its metrics to those of steps.
        """
        self._sinks = tuple(sinks)
        self._goodput = goodput

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricSink``."""
        if self._goodput is not None:
            is_record = TRAIN_LOSS in values
            self._goodput.mark(step, is_record=is_record)
            if is_record:
                values = {**values, **self._goodput.metrics()}
        for sink in self._sinks:
            sink.write(step, values)

    def alive(self, step: int) -> None:
        """Note that the process is alive after a step."""
        if self._goodput is not None:
            self._goodput.alive(step)

    def event(self, step: int, kind: str, details: Details) -> None:
        """See ``MetricSink``."""
        if self._goodput is not None:
            self._goodput.mark(step)
        for sink in self._sinks:
            sink.event(step, kind, details)
        if self._goodput is not None and kind == REWOUND:
            self._goodput.rewound()

    def close(self) -> None:
        """See ``MetricSink``."""
        if self._goodput is not None:
            self._goodput.close()
        for sink in self._sinks:
            sink.close()


class JsonlSink:
    """``metrics.jsonl``, the record over all attempts; format in ``metrics_file.py``.

    Each record is one unbuffered write, so a killed process loses no earlier record. Records that
    cannot be written, because the disk is full, are held back and written before the next one.
    """

    def __init__(
        self,
        path: Path,
        *,
        attempt: int,
        first_step: int,
        goodput: GoodputMeter | None = None,
        may_write: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin an attempt.

        Args:
            path: Created if it does not exist; its folder does.
            attempt: Number of this start of the run, from 1.
            first_step: Steps done before.
            goodput: Adds to each line what goodput is computed from.
            may_write: Returns False once the folder belongs to another job; asked at the end.
            clock: Seconds since 1970.
        """
        self._may_write = may_write
        self._path = path
        self._attempt = attempt
        self._goodput = goodput
        self._last_step = first_step
        self._clock = clock
        self._held: deque[bytes] = deque()
        self._num_held_bytes = 0
        self._num_lost = 0
        self._has_failed = False
        self._may_be_torn = True
        begun = {} if goodput is None else {"process_started": round(goodput.process_started, 3)}
        self.event(first_step, "started", begun)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricSink``."""
        self._last_step = step
        self._append({"step": step, **values})

    def event(self, step: int, kind: str, details: Details) -> None:
        """See ``MetricSink``."""
        # A save in the background ends during a later step.
        self._last_step = step if kind == REWOUND else max(step, self._last_step)
        self._append({"step": step, "event": kind, **details})

    def close(self) -> None:
        """Write the attempt's end, and try a last time to write what was held back."""
        if not self._may_write():
            return
        self.event(self._last_step, "ended", {})
        if self._held:
            log.error(
                "metrics were lost path=%s lost=%d", self._path, self._num_lost + len(self._held)
            )

    def _append(self, record: Mapping[str, object]) -> None:
        line = {**record, "attempt": self._attempt, "time": round(self._clock(), 3)}
        if self._goodput is not None:
            line["phase_seconds"] = self._goodput.phase_seconds()
        self._held.append(encode(line))
        self._num_held_bytes += len(self._held[-1])
        while self._num_held_bytes > MAX_HELD_BYTES:
            self._num_held_bytes -= len(self._held.popleft())
            self._num_lost += 1
        self._write_held()

    def _write_held(self) -> None:
        num_held = len(self._held)
        try:
            while self._held:
                self._write_line(self._held[0])
                self._num_held_bytes -= len(self._held.popleft())
        except OSError as error:
            if not self._has_failed:
                log.error(
                    "could not write metrics; holding them back path=%s reason=%s",
                    *(self._path, error),
                )
            self._has_failed = True
            return
        if self._has_failed:
            log.warning(
                "metrics are written again path=%s delayed=%d lost=%d",
                *(self._path, max(num_held - 1, 0), self._num_lost),
            )
            self._has_failed, self._num_lost = False, 0

    def _write_line(self, line: bytes) -> None:
        """Write one record.

        Raises:
            OSError: It was not written, or only in part; the next write removes that part.
        """
        if self._may_be_torn:
            repair_last_line(self._path)
        self._may_be_torn = True
        with self._path.open("ab", buffering=0) as stream:
            written = stream.write(line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes written")
        self._may_be_torn = False


def open_sinks(
    config: RunConfig,
    *,
    attempt: int,
    first_step: int,
    console: Console,
    environ: Mapping[str, str],
    phases: PhaseClock,
    may_write: Callable[[], bool] = lambda: True,
    process_started: float | None = None,
) -> SinkGroup:
    """Open the configured sinks; on rank 0, after the run folder was opened.

    Args:
        config: Configuration of the run.
        attempt: Number of this start of the run, from 1.
        first_step: Steps done before.
        console: Console of the log.
        environ: Environment of the process.
        phases: Clock of the loop, which begins next.
        may_write: Returns False once the folder belongs to another job.
        process_started: See ``GoodputMeter``.
    """
    goodput = GoodputMeter(
        config.run_dir,
        first_step=first_step,
        phases=phases,
        may_write=may_write,
        process_started=process_started,
    )
    sinks: list[MetricSink] = [
        JsonlSink(
            config.run_dir / METRICS_FILE,
            attempt=attempt,
            first_step=first_step,
            goodput=goodput,
            may_write=may_write,
        ),
        EventsSink(config.run_dir / EVENTS_FILE, attempt=attempt, first_step=first_step),
        ConsoleSink(
            console,
            first_step=first_step,
            last_step=config.run.steps,
            progress_bar=config.observe.progress_bar,
        ),
    ]
    if config.observe.wandb_mode is not WandbMode.off:
        sinks.append(WandbSink(config, attempt=attempt, environ=environ, first_step=first_step))
    if config.observe.tensorboard:
        sinks.append(TensorBoardSink(config, attempt=attempt, first_step=first_step))
    return SinkGroup(sinks, goodput=goodput)
