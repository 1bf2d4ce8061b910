"""TensorBoard as a sink: event files in the run folder, written by a thread beside training.

torch's ``SummaryWriter`` writes in a thread as well, but hands on what goes wrong there: an error
is raised by a later call, and a disk that hangs holds up the caller once a short queue is full. So
the thread is our own, and writes the library's events in its format.
"""

import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm_dist.config.load import dump_config
from glm_dist.config.schema import RunConfig
from glm_dist.observe.metrics_file import REWOUND
from glm_dist.observe.provenance import last_provenance

log = logging.getLogger(__name__)

TENSORBOARD_FOLDER = "tensorboard"

MAX_WAITING = 10_000
"""Records kept in memory while the disk does not take them; further ones are dropped."""

FINISH_SECONDS = 5.0
"""Longest time for the last records, which the end of the job waits for."""


@dataclass(frozen=True)
class _Record:
    """Metrics of a step, or a rewind to it."""

    step: int
    values: Mapping[str, float] = field(default_factory=dict)
    is_rewind: bool = False
    time: float = field(default_factory=time.time)


class TensorBoardSink:
    """Event files of TensorBoard; they neither stop training nor make it wait.

    Every attempt has a file, all in one folder, which TensorBoard shows as one run. An attempt or a
    rewind takes back the later steps of those before.
    """

    def __init__(self, config: RunConfig, *, attempt: int, first_step: int) -> None:
        """Open the attempt's file; if that fails, log it and record nothing.

        Args:
            config: Gives the run folder; its values are recorded as text.
            attempt: Number of this start of the run, from 1.
            first_step: Steps done before.
        """
        self._records: queue.Queue[_Record | None] = queue.Queue(MAX_WAITING)
        self._is_over = False
        folder = config.run_dir / TENSORBOARD_FOLDER
        texts = {
            "config": dump_config(config),
            "provenance": json.dumps(last_provenance(config.run_dir), indent=1),
        }
        self._thread: threading.Thread | None = None
        try:
            file = _EventFile(folder, attempt=attempt, first_step=first_step)
        except (OSError, ImportError, TypeError) as error:  # the disk; versions that do not fit
            self._give_up(error)
            return
        self._thread = threading.Thread(
            target=self._feed, args=(file, first_step, texts), daemon=True, name="tensorboard"
        )
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricSink``."""
        self._put(_Record(step, dict(values)))

    def event(self, step: int, kind: str, details: Mapping[str, str | float]) -> None:
        """Take back what a rewind repeats; other events are only in events.jsonl."""
        if kind == REWOUND:
            self._put(_Record(step, is_rewind=True))

    def close(self) -> None:
        """Write what is left, for at most ``FINISH_SECONDS``."""
        self._put(None)
        if self._thread is not None:
            self._thread.join(FINISH_SECONDS)
            if self._thread.is_alive():
                self._give_up(TimeoutError(f"the last records took more than {FINISH_SECONDS:g} s"))

    def _put(self, record: _Record | None) -> None:
        if self._is_over:
            return
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._give_up(TimeoutError(f"{MAX_WAITING} records wait for the disk"))

    def _feed(self, file: "_EventFile", first_step: int, texts: Mapping[str, str]) -> None:
        """Write records until the last one; runs in the thread."""
        try:
            with file:
                for name, text in texts.items():
                    file.add_text(name, text, step=first_step)
                while (record := self._records.get()) is not None:
                    if record.is_rewind:
                        file.take_back(record.step + 1)
                    else:
                        file.add(record)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._is_over:
            log.warning(
                "TensorBoard gets no more records: %s: %s; metrics.jsonl is complete",
                type(error).__name__,
                error,
            )
        self._is_over = True


class _EventFile:
    """One file of events in TensorBoard's format."""

    def __init__(self, folder: Path, *, attempt: int, first_step: int) -> None:
        """Begin a file that continues the others in the folder.

        Args:
            folder: Created if it does not exist.
            attempt: Number of this start of the run.
            first_step: Steps done before; later ones in the other files are taken back.

        Raises:
            OSError: The file cannot be created or written.
        """
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._protos: Any = event_pb2
        folder.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of their names.
        name = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{attempt}"
        self._stream = (folder / f"events.out.tfevents.{name}").open("wb")
        self._writer = RecordWriter(self._stream)
        self._write(file_version="brain.Event:2")
        # A first attempt of a folder takes back nothing; a second one from step 0, all of it.
        self.take_back(first_step + 1 if first_step else 0)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, record: _Record) -> None:
        """Add the metrics of a step."""
        values = [{"tag": name, "simple_value": value} for name, value in record.values.items()]
        self._write(step=record.step, wall_time=record.time, summary={"value": values})

    def add_text(self, name: str, text: str, *, step: int) -> None:
        """Add a string, shown as it is written."""
        code = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown
        value = {
            "tag": f"{name}/text_summary",  # as torch names it
            "metadata": {"plugin_data": {"plugin_name": "text"}},
            "tensor": {
                "dtype": "DT_STRING",
                "string_val": [code.encode()],
                "tensor_shape": {"dim": [{"size": 1}]},
            },
        }
        self._write(step=step, summary={"value": [value]})

    def take_back(self, step: int) -> None:
        """Take back what was recorded from a step on."""
        self._write(step=step, session_log={"status": self._protos.SessionLog.START})

    def _write(self, *, wall_time: float | None = None, **content: Any) -> None:
        event = self._protos.Event(
            wall_time=time.time() if wall_time is None else wall_time, **content
        )
        self._writer.write(event.SerializeToString())
        self._writer.flush()
