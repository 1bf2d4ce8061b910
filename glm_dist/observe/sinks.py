"""Sinks for records: the metrics file, which is authoritative, the console, and optionally W&B.

A sink is used by rank 0 between collectives, so it must not raise: that would leave the other
ranks waiting. A failure is logged once, and training continues.
"""

import logging
import netrc
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlparse

from rich.console import Console

from glm_dist.config.schema import RunConfig, WandbMode
from glm_dist.observe.console import ConsoleSink
from glm_dist.observe.events import EVENTS_FILE, EventsSink
from glm_dist.observe.metrics_file import METRICS_FILE, encode, repair_last_line

log = logging.getLogger(__name__)

Details: TypeAlias = Mapping[str, str | float]

WANDB_ID_FILE = "wandb_id.txt"
WANDB_TIMEOUT_SECONDS = 60.0


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

    def __init__(self, sinks: Sequence[MetricSink] = ()) -> None:
        """Store the sinks; each record goes to them in this order."""
        self._sinks = tuple(sinks)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricSink``."""
        for sink in self._sinks:
            sink.write(step, values)

    def event(self, step: int, kind: str, details: Details) -> None:
        """See ``MetricSink``."""
        for sink in self._sinks:
            sink.event(step, kind, details)

    def close(self) -> None:
        """See ``MetricSink``."""
        for sink in self._sinks:
            sink.close()


class JsonlSink:
    """``metrics.jsonl``, the record over all attempts; format in ``metrics_file.py``.

    Each record is one unbuffered write, so a killed process loses no earlier record.
    """

    def __init__(
        self,
        path: Path,
        *,
        attempt: int,
        first_step: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin an attempt.

        Args:
            path: Created if it does not exist; its folder does.
            attempt: Number of this start of the run, from 1.
            first_step: Steps done before.
            clock: Seconds since 1970.
        """
        self._path = path
        self._attempt = attempt
        self._clock = clock
        self._num_lost = 0
        self._may_be_torn = True
        self.event(first_step, "started", {})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricSink``."""
        self._append({"step": step, **values})

    def event(self, step: int, kind: str, details: Details) -> None:
        """See ``MetricSink``."""
        self._append({"step": step, "event": kind, **details})

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _append(self, record: Mapping[str, object]) -> None:
        line = encode({**record, "attempt": self._attempt, "time": round(self._clock(), 3)})
        try:
            if self._may_be_torn:
                repair_last_line(self._path)
            self._may_be_torn = True
            with self._path.open("ab", buffering=0) as stream:
                written = stream.write(line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes written")
        except OSError as error:
            self._num_lost += 1
            if self._num_lost == 1:
                log.error("could not write metrics path=%s reason=%s", self._path, error)
            return
        self._may_be_torn = False
        if self._num_lost:
            log.warning("metrics are written again path=%s lost=%d", self._path, self._num_lost)
            self._num_lost = 0


class WandbSink:
    """Weights & Biases; its failures never stop the run.

    The run's id is stored in the run folder, so every attempt continues one W&B run. Steps are a
    separate metric: after a rewind they are logged again, which W&B's own counter would drop.
    """

    def __init__(self, config: RunConfig, *, attempt: int, environ: Mapping[str, str]) -> None:
        """Open the run; if that fails, log it and record nothing.

        Args:
            config: Gives mode, project, entity and the run's name and folder; uploaded to W&B.
            attempt: Number of this start of the run, from 1.
            environ: Environment of the process, which may hold an API key.
        """
        self._attempt = attempt
        self._run: Any = None
        self._is_broken = False
        mode = config.observe.wandb_mode
        if mode is WandbMode.online and not has_wandb_key(environ):
            log.warning("no W&B API key found; recording offline dir=%s", config.run_dir)
            mode = WandbMode.offline
        with _NeverRaise(self):
            self._run = _open_run(config, mode=mode, run_id=_run_id(config.run_dir))
        if self._run is None and mode is WandbMode.online:
            self._is_broken = False
            with _NeverRaise(self):
                self._run = _open_run(
                    config, mode=WandbMode.offline, run_id=_run_id(config.run_dir)
                )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricSink``."""
        if self._run is not None:
            with _NeverRaise(self):
                self._run.log({"step": step, "attempt": self._attempt, **values})

    def event(self, step: int, kind: str, details: Details) -> None:
        """Do nothing: W&B has no events, they are only in metrics.jsonl."""

    def close(self) -> None:
        """Wait for the upload of what was recorded."""
        if self._run is not None:
            with _NeverRaise(self):
                self._run.finish()

    def report_failure(self, error: BaseException) -> None:
        """Log once that W&B fails."""
        if not self._is_broken:
            log.warning(
                "W&B failed; training continues and metrics.jsonl is complete reason=%s: %s",
                type(error).__name__,
                error,
            )
        self._is_broken = True


def open_sinks(
    config: RunConfig,
    *,
    attempt: int,
    first_step: int,
    console: Console,
    environ: Mapping[str, str],
) -> SinkGroup:
    """Open the configured sinks; on rank 0, after the run folder was opened.

    Args:
        config: Configuration of the run.
        attempt: Number of this start of the run, from 1.
        first_step: Steps done before.
        console: Console of the log.
        environ: Environment of the process.
    """
    sinks: list[MetricSink] = [
        JsonlSink(config.run_dir / METRICS_FILE, attempt=attempt, first_step=first_step),
        EventsSink(config.run_dir / EVENTS_FILE, attempt=attempt, first_step=first_step),
        ConsoleSink(
            console,
            first_step=first_step,
            last_step=config.run.steps,
            progress_bar=config.observe.progress_bar,
        ),
    ]
    if config.observe.wandb_mode is not WandbMode.off:
        sinks.append(WandbSink(config, attempt=attempt, environ=environ))
    return SinkGroup(sinks)


class _NeverRaise:
    """Context that logs an exception from W&B instead of raising it."""

    def __init__(self, sink: WandbSink) -> None:
        self._sink = sink

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._sink.report_failure(error)
        return True


def has_wandb_key(environ: Mapping[str, str]) -> bool:
    """Return True if W&B finds an API key without a prompt: in the environment or in ~/.netrc."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(environ.get("NETRC", Path(environ.get("HOME", "")) / ".netrc"))
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(run_dir: Path) -> str:
    path = run_dir / WANDB_ID_FILE
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _open_run(config: RunConfig, *, mode: WandbMode, run_id: str) -> object:
    import wandb

    run = wandb.init(
        project=config.observe.wandb_project,
        entity=config.observe.wandb_entity,
        name=config.run.name,
        id=run_id,
        resume="allow",
        mode="online" if mode is WandbMode.online else "offline",
        dir=str(config.run_dir),
        config=_plain(asdict(config)),
        settings=wandb.Settings(silent=True, console="off", init_timeout=WANDB_TIMEOUT_SECONDS),
    )
    run.define_metric("*", step_metric="step")
    return run


def _plain(value: Any) -> Any:
    """Convert enumerations to names, as in the YAML of the configuration."""
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    return value.name if isinstance(value, Enum) else value
