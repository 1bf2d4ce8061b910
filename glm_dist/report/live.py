"""Runs that go on: what is new in their folders since a page last asked. Only reads."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from glm_dist.checkpoint.manifest import Json
from glm_dist.observe.events import EVENTS_FILE
from glm_dist.observe.goodput_meter import GOODPUT_FILE
from glm_dist.observe.metrics_file import METRICS_FILE
from glm_dist.observe.run_folder import CHECKPOINTS
from glm_dist.report.history import metrics_in, records_from, rewrites_history
from glm_dist.report.page import render_page
from glm_dist.report.run import Options, read_run, rounded

REFRESH_SECONDS = 3.0
"""Pause of a page between two requests."""

SHARE_OF_TIME = 0.05
"""Most of the time that is spent on reading a run as a whole."""

MOST_NEW = 5000
"""Records of one answer; a page that was left alone for a day reads the run as a whole."""

Stamp = tuple[tuple[int, int], ...]

ALL_AT_ONCE = ("tables", "row", "config")
"""Parts of a run that an answer leaves out: they are large, or do not change."""


@dataclass
class LiveRun:
    """One run: its last reading as a whole, and how old that is."""

    folder: Path
    options: Options
    whole: dict[str, Json] = field(default_factory=dict)
    _stamp: Stamp = ()
    _read_at: float = -1e9
    _cost: float = 0.0

    def read(self, *, at_once: bool) -> dict[str, Json]:
        """Return the run as a whole.

        Args:
            at_once: Even if it was read just before; otherwise what is known may be some seconds
                old, more for a long run.
        """
        stamp, now = self._current_stamp(), time.monotonic()
        is_due = now - self._read_at > max(REFRESH_SECONDS, self._cost / SHARE_OF_TIME)
        if stamp != self._stamp and (at_once or is_due):
            self.whole = read_run(self.folder, self.options, row=self.whole.get("row"))
            self._cost = time.monotonic() - now
            self._stamp, self._read_at = stamp, now
        return self.whole

    def since(self, offset: int) -> dict[str, Json]:
        """Return what is new behind an offset in ``metrics.jsonl``.

        Args:
            offset: ``offset`` of the last answer.

        Returns:
            ``records`` and small facts; or ``run``, the whole, after an attempt or a rewind has
            begun, and for an offset that the file does not have.
        """
        if not self._is_line_start(offset):
            return {"run": self.read(at_once=True)}
        records: list[Json] = []
        for record, end in records_from(self.folder / METRICS_FILE, offset):
            if rewrites_history(record) or len(records) >= MOST_NEW:
                return {"run": self.read(at_once=True)}
            offset = end
            metrics = {name: rounded(value) for name, value in metrics_in(record)}
            if metrics:
                records.append([record["step"], record["time"], dict(metrics)])
        facts = {k: x for k, x in self.read(at_once=False).items() if k not in ALL_AT_ONCE}
        return {**facts, "offset": offset, "records": records}

    def _is_line_start(self, offset: int) -> bool:
        try:
            with (self.folder / METRICS_FILE).open("rb") as stream:
                if offset == 0:
                    return True
                stream.seek(offset - 1)
                return stream.read(1) == b"\n"
        except FileNotFoundError:
            return offset == 0

    def _current_stamp(self) -> Stamp:
        names = (METRICS_FILE, EVENTS_FILE, GOODPUT_FILE, CHECKPOINTS, "finished", "stopped")
        return tuple(map(_stamp_of, (self.folder / name for name in names)))


class LiveReport:
    """The page of some runs, and its answers to requests for what is new."""

    def __init__(self, folders: Sequence[Path], labels: Sequence[str], options: Options) -> None:
        """Read nothing yet.

        Args:
            folders: Run folders.
            labels: Name of each run.
            options: What to read.
        """
        self._runs = [LiveRun(folder, options) for folder in folders]
        self._labels = labels
        self._lock = Lock()  # several pages may ask at once

    def page(self) -> str:
        """Return the page with all that is known now."""
        with self._lock:
            runs = [run.read(at_once=True) for run in self._runs]
        return render_page(runs, self._labels, refresh_seconds=REFRESH_SECONDS)

    def news(self, offsets: Sequence[int]) -> dict[str, Json]:
        """Return what is new in each run.

        Args:
            offsets: Of each run; see ``LiveRun.since``.
        """
        with self._lock:
            return {
                "time": round(time.time(), 3),
                "runs": [run.since(at) for run, at in zip(self._runs, offsets, strict=True)],
            }

    @property
    def num_runs(self) -> int:
        """Runs on the page."""
        return len(self._runs)


def _stamp_of(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)
