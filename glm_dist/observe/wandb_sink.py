"""Weights & Biases as a sink. The library runs in a process beside training (wandb_process.py)."""

import atexit
import json
import logging
import netrc
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import glm_dist
from glm_dist.config.schema import RunConfig, WandbMode
from glm_dist.files import exists, write_atomically
from glm_dist.observe.provenance import last_provenance
from glm_dist.observe.wandb_process import LAST_LINE, MAX_WAITING, Order

log = logging.getLogger(__name__)

WANDB_ID_FILE = "wandb_id.txt"
WANDB_LOG = "log/wandb.log"
"""Output of the library, in the run folder."""

PROBE_SECONDS = 8.0
"""Longest time for the server's first answer; shorter than the wait at the end of a short job."""

INIT_SECONDS = 60.0
"""Longest time for the connection; training does not wait for it."""

FINISH_SECONDS = 15.0
"""Longest time for the last upload, which the end of the job waits for. Batch systems allow 30 s
from the signal to the kill, and a checkpoint is saved in that time, too."""

MARKER_SECONDS = 3.0
"""Longest wait for the file that says how the run has ended, which follows the last record."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class WandbSink:
    """Weights & Biases; it neither stops training nor makes it wait.

    The run's id is stored in the run folder, so every attempt continues one W&B run. Steps are a
    separate metric: after a rewind they are logged again, which W&B's own counter would drop.
    """

    def __init__(
        self, config: RunConfig, *, attempt: int, environ: Mapping[str, str], first_step: int = 0
    ) -> None:
        """Start the process; if that fails, log it and record nothing.

        Args:
            config: Gives mode, project, entity and the run's name and folder; uploaded to W&B.
            attempt: Number of this start of the run, from 1.
            first_step: Steps done before.
            environ: Environment of the process, which may hold an API key.
        """
        self._attempt = attempt
        self._lines: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._num_dropped = 0
        self._is_closed = False
        mode = config.observe.wandb_mode
        if mode is WandbMode.online and not has_wandb_key(environ):
            log.warning("no W&B API key found; recording offline dir=%s", config.run_dir)
            mode = WandbMode.offline
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = _start(config.run_dir / WANDB_LOG, environ)
        except OSError as error:
            _warn(f"{type(error).__name__}: {error}")
            return
        run_id = _run_id(config.run_dir)
        order = _order(config, mode, run_id=run_id, attempt=attempt, first_step=first_step)
        self._put(order.encode())
        self._threads = [
            threading.Thread(target=each, args=(self._process,), daemon=True, name=f"wandb {name}")
            for name, each in (("records", self._feed), ("warnings", _repeat_warnings))
        ]
        for thread in self._threads:
            thread.start()
        # After the job's last barrier, when its exit status is decided.
        atexit.register(self.wait)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricSink``."""
        self._put(json.dumps({"step": step, "attempt": self._attempt, **values}) + "\n")

    def event(self, step: int, kind: str, details: Mapping[str, str | float]) -> None:
        """Do nothing: W&B has no events, they are only in metrics.jsonl."""

    def close(self) -> None:
        """End the records; the upload goes on until ``wait``."""
        if not self._is_closed:
            self._put(LAST_LINE)
        self._is_closed = True

    def wait(self) -> None:
        """Wait for the upload, at most ``FINISH_SECONDS``; called at the process's exit."""
        self.close()
        if self._process is None:
            return
        try:
            self._process.wait(FINISH_SECONDS + 1)
        except subprocess.TimeoutExpired:
            _warn("it does not end; the rest is in the run folder's wandb/, for `wandb sync`")
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for thread in self._threads:
            thread.join(1.0)
        self._process = None
        atexit.unregister(self.wait)

    def _put(self, line: str) -> None:
        if self._process is None:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._num_dropped += 1
            if self._num_dropped == 1:
                _warn(f"it takes no records; those beyond {MAX_WAITING} waiting ones are dropped")

    def _feed(self, process: "subprocess.Popen[str]") -> None:
        """Hand lines to the process; runs in a thread, since the pipe may be full for minutes."""
        assert process.stdin is not None
        try:
            with process.stdin:
                while True:
                    line = self._lines.get()
                    process.stdin.write(line)
                    process.stdin.flush()
                    if line == LAST_LINE:
                        return
        except OSError:  # it has ended, and said why
            return


def _repeat_warnings(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            _warn(line.strip())


def _warn(reason: str) -> None:
    log.warning("W&B: %s; metrics.jsonl is complete", reason)


def _start(log_file: Path, environ: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start the process in a session of its own: a stop signal is for the training process.

    Raises:
        OSError: It cannot be started.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    package = str(Path(glm_dist.__file__).resolve().parent.parent)
    paths = [environ.get("PYTHONPATH", ""), package]
    with log_file.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "glm_dist.observe.wandb_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            encoding="utf-8",
            env={**environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,
        )


def _order(
    config: RunConfig, mode: WandbMode, *, run_id: str, attempt: int, first_step: int
) -> Order:
    return Order(
        project=config.observe.wandb_project,
        entity=config.observe.wandb_entity,
        name=config.run.name,
        run_id=run_id,
        online=mode is WandbMode.online,
        folder=str(config.run_dir),
        config=_plain(asdict(config)) | {"provenance": last_provenance(config.run_dir)},
        probe_seconds=PROBE_SECONDS,
        init_seconds=INIT_SECONDS,
        finish_seconds=FINISH_SECONDS,
        training_pid=os.getpid(),
        attempt=attempt,
        first_step=first_step,
        marker_seconds=MARKER_SECONDS,
    )


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
    """Return the id of the run in W&B; a new one at the first attempt."""
    path = run_dir / WANDB_ID_FILE
    try:
        if exists(path):
            found = path.read_text(encoding="utf-8", errors="replace").strip()
            if _ID.fullmatch(found):
                return found
            log.warning("damaged, so records go to a new W&B run path=%s content=%r", path, found)
        run_id = secrets.token_hex(4)
        write_atomically(path, run_id + "\n")
    except OSError as error:
        run_id = secrets.token_hex(4)
        log.warning("could not keep the id of the W&B run path=%s reason=%s", path, error)
    return run_id


def _plain(value: Any) -> Any:
    """Convert enumerations to names, as in the YAML of the configuration."""
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    return value.name if isinstance(value, Enum) else value
