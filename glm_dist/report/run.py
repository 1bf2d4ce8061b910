"""One run as the page needs it: plain lists, numbers and strings, read from its folder.

Whatever is missing or cannot be read is left out and noted; nothing is written.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from glm_dist.checkpoint.manifest import Json
from glm_dist.config.load import load_config_file
from glm_dist.config.parameter_specs import count_parameters
from glm_dist.config.schema import RunConfig, TaskKind
from glm_dist.config.values import shown_value, values_of
from glm_dist.errors import ConfigError, GlmDistError
from glm_dist.files import exists, is_dir
from glm_dist.observe.endings import finished_step, read_stopped
from glm_dist.observe.events import EVENTS_FILE, sound_events
from glm_dist.observe.goodput import BUCKETS, USEFUL, Attempt, Buckets, account_each, add
from glm_dist.observe.metrics import SECONDS_PER_STEP, TOKENS_PER_SECOND
from glm_dist.observe.metrics_file import METRICS_FILE
from glm_dist.observe.provenance import read_attempts
from glm_dist.observe.run_folder import CHECKPOINTS, CONFIG_FILE, PROVENANCE_FILE
from glm_dist.report.checkpoints import checkpoint_facts
from glm_dist.report.history import Column, History, read_history, thin
from glm_dist.report.row import row_facts
from glm_dist.tasks.results import RESULTS_FILE

MARKS_OF_A_RUN = (CONFIG_FILE, METRICS_FILE, EVENTS_FILE, PROVENANCE_FILE, CHECKPOINTS)
"""Files and folders, each of which only a run has."""

MOST_EVENTS = 2000
"""Newest events that a page lists."""

_EARLIER = re.compile(r"config\.attempt_(\d{1,9})\.yaml").fullmatch
"""Configurations that a later attempt replaced; see ``observe/run_folder.py``."""

DIGITS = 8
"""Significant digits of a value: fp32 has 7 to 8."""


@dataclass(frozen=True)
class Options:
    """Choices of a report."""

    most_records: int = 10_000
    """Records of one metric; more are thinned out, see ``history.thin``. 0: all."""
    verify: bool = False
    """Hash the files of checkpoints."""
    row: bool = True
    """Build a training row, from tokenizer and corpora."""


@dataclass
class Notes:
    """Reasons why something could not be read, in words for the page."""

    lines: list[str] = field(default_factory=list)

    def add(self, error: GlmDistError | OSError) -> None:
        """Note the first line of an error."""
        self.lines.append(str(error).partition("\n")[0])


def check_is_run(folder: Path) -> None:
    """Refuse a folder that no run has written to.

    Raises:
        ConfigError: There is no such folder, or nothing of a run in it.
    """
    if _is_run(folder):
        return
    problem, example = "does not exist", "runs/quickstart"
    if is_dir(folder):
        problem = "holds no run"
        inside = sorted(each for each in folder.iterdir() if _is_run(each))
        if inside:
            problem = f"holds {len(inside)} run{'s' if len(inside) > 1 else ''} and is none"
            example = " ".join(map(str, inside[:2]))
    raise ConfigError(
        f"{folder} {problem}: a run folder has {CONFIG_FILE} or {METRICS_FILE}.\n"
        f"  Name run folders, such as {example}.",
        key="RUN",
        value=str(folder),
        fix=f"glm-dist report {example}",
    )


def _is_run(folder: Path) -> bool:
    return any(exists(folder / name) for name in MARKS_OF_A_RUN)


def read_run(folder: Path, options: Options, *, row: Json = None) -> dict[str, Json]:
    """Read a run.

    Args:
        folder: The run folder, checked by ``check_is_run``.
        options: What to read.
        row: Output of ``read_row``, in place of reading it again.
    """
    notes = Notes()
    history = read_history(folder)
    config = _read_config(folder / CONFIG_FILE, notes)
    if row is None and options.row and config is not None:
        row = read_row(config, folder, notes)
    begin = _begin(history)
    return {
        "path": str(folder.absolute()),
        "offset": history.end,
        "begin": begin,
        "tables": _tables(history.columns, begin, options.most_records),
        "row": row,
        "config": _config_values(config),
        "results": _read_json(folder / RESULTS_FILE),
        **_facts(folder, history, config, options, notes),
    }


def read_row(config: RunConfig, folder: Path, notes: Notes) -> dict[str, Json] | None:
    """Build the run's first row; None, with a note, if its data are not on this machine."""
    try:
        return row_facts(config, folder)
    except (GlmDistError, OSError) as error:
        notes.add(error)
        return None


def _facts(
    folder: Path, history: History, config: RunConfig | None, options: Options, notes: Notes
) -> dict[str, Json]:
    """Return what is small, and changes while a run goes on."""
    return {
        "state": _state(folder, history, config),
        "last_sign": _last_sign(history),
        "shape": _shape(config, history.columns),
        "gaps": _gaps(history.attempts),
        "goodput": _goodput(history.attempts),
        "attempts": _provenance(folder, notes),
        "changes": _changes(folder, config, notes),
        "events": _events(folder, history),
        "checkpoints": list(checkpoint_facts(folder, verify=options.verify)),
        "notes": list(notes.lines),
    }


def _read_config(file: Path, notes: Notes) -> RunConfig | None:
    try:
        return load_config_file(file)
    except GlmDistError as error:
        notes.add(error)
        return None


def _changes(folder: Path, config: RunConfig | None, notes: Notes) -> list[Json]:
    """Return the values that attempts changed: number of the first attempt that had them, keys."""
    files = {int(match[1]): path for path in folder.iterdir() if (match := _EARLIER(path.name))}
    found: list[Json] = []
    following = _config_values(config)
    for attempt in sorted(files, reverse=True):
        before = _config_values(_read_config(files[attempt], notes))
        changed: list[Json] = [
            [key, before.get(key), following.get(key)]
            for key in sorted(before.keys() | following.keys())
            if before.get(key) != following.get(key)
        ]
        if before and following:
            found.append({"attempt": attempt + 1, "values": changed})
        following = before or following
    return found[::-1]


def _config_values(config: RunConfig | None) -> dict[str, Json]:
    if config is None:
        return {}
    return {key: shown_value(value) for key, value in values_of(config)}


def _begin(history: History) -> float:
    """Return the start of the first process, in seconds since 1970; 0 without records."""
    return history.attempts[0].process_started if history.attempts else 0.0


def _last_sign(history: History) -> float:
    return max((attempt.last.time for attempt in history.attempts), default=0.0)


def _tables(columns: Mapping[str, Column], begin: float, most: int) -> list[Json]:
    """Put columns with the same records into one table."""
    tables: dict[bytes, dict[str, Any]] = {}
    for name, whole in columns.items():
        column = thin(whole, most) if most else whole
        key = column.steps.tobytes() + column.times.tobytes()
        table = tables.setdefault(
            key,
            {
                "steps": column.steps.tolist(),
                "seconds": [round(x, 3) for x in (column.times - begin).tolist()],
                "columns": {},
                "means": {},
                "recorded": len(whole),
            },
        )
        for kind, values in (("columns", column.values), ("means", column.means)):
            if values is not None:
                table[kind][name] = list(map(rounded, values.tolist()))
    return list(tables.values())


def rounded(value: float) -> float | None:
    """Round to ``DIGITS``; None for what is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _state(folder: Path, history: History, config: RunConfig | None) -> dict[str, Json]:
    """Say how the run stands: finished, stopped, or neither."""
    done = max((attempt.last.step for attempt in history.attempts[-1:]), default=0)
    planned = None if config is None else config.run.steps
    facts: dict[str, Json] = {"step": done, "planned": planned}
    stopped = read_stopped(folder)
    if finished_step(folder) is not None:
        return {**facts, "kind": "finished"}
    if stopped is not None:
        return {**facts, "kind": "stopped", "reason": stopped.reason, "saved": stopped.saved}
    has_ended = any(event.get("event") == "ended" for event in history.events[-1:])
    return {**facts, "kind": "ended" if has_ended else "open"}


def _shape(config: RunConfig | None, columns: Mapping[str, Column]) -> dict[str, Json]:
    tokens = _tokens_per_step(config, columns)
    if config is None:
        return {"tokens_per_step": tokens}
    model, task = config.model, config.task
    return {
        "name": config.run.name,
        "tokens_per_step": tokens,
        "parameters": count_parameters(model, config.padded_vocab_size),
        "model": f"{model.num_layers} layers, hidden {model.hidden_size},"
        f" {model.num_attention_heads} heads",
        "dtype": config.precision.dtype.name,
        "zero": config.zero.stage,
        "task": None if task.kind is TaskKind.none else task.name,
    }


def _tokens_per_step(config: RunConfig | None, columns: Mapping[str, Column]) -> float | None:
    """Return the positions of a step, from the records of its speed; else from the batch."""
    speed, pace = columns.get(TOKENS_PER_SECOND), columns.get(SECONDS_PER_STEP)
    if speed is not None and pace is not None and len(speed) == len(pace):
        found = np.nanmedian(speed.values * pace.values)
        return float(round(float(found))) if math.isfinite(found) else None
    if config is None:
        return None
    return float(config.batch.global_batch_size * config.batch.row_length)


def _gaps(attempts: Sequence[Attempt]) -> list[Json]:
    """Return the times between attempts, when nothing ran, as pairs of seconds since 1970."""
    return [
        [before.last.time, after.begun]
        for before, after in pairwise(attempts)
        if after.begun > before.last.time
    ]


def _goodput(attempts: Sequence[Attempt]) -> dict[str, Json]:
    """Split wall time by start of the run; the parts between rewinds count together."""
    starts: list[tuple[Attempt, Buckets]] = []
    for attempt, buckets in zip(attempts, account_each(attempts), strict=True):
        if starts and attempt.is_rest:
            first, before = starts[-1]
            starts[-1] = (first, add(before, buckets))
        else:
            starts.append((attempt, buckets))
    return {
        "buckets": list(BUCKETS),
        "useful": USEFUL,
        "attempts": [
            {
                "first_step": attempt.first_step,
                "begun": attempt.begun,
                "seconds": {name: round(x, 3) for name, x in buckets.items()},
            }
            for attempt, buckets in starts
        ],
    }


def _provenance(folder: Path, notes: Notes) -> list[Json]:
    try:
        found: list[Any] = read_attempts(folder / PROVENANCE_FILE)
    except GlmDistError as error:
        notes.add(error)
        return []
    return [each for each in found if isinstance(each, dict)]


def _events(folder: Path, history: History) -> list[Json]:
    """Return the events, from ``events.jsonl`` or, in folders of older versions, the metrics."""
    found = list(sound_events(folder / EVENTS_FILE)) or [
        {
            "step": line["step"],
            "kind": line["event"],
            "attempt": line["attempt"],
            "time": line["time"],
            "details": {name: x for name, x in line.items() if name not in _EVENT_FIELDS},
        }
        for line in history.events
    ]
    return list(found[-MOST_EVENTS:])


_EVENT_FIELDS = frozenset({"step", "event", "attempt", "time", "phase_seconds"})


def _read_json(path: Path) -> Json:
    try:
        found: Json = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return None
