"""Format of ``metrics.jsonl``: one JSON object per line, several attempts in one file.

Every line has ``step``, ``attempt`` and ``time`` (seconds since 1970). Lines with ``event`` are
events; the others hold metrics. An attempt begins with the event ``started``, whose step is the
last one before the attempt, and whose ``process_started`` is the start of its process. If it was
not killed it ends with the event ``ended``. The event ``rewound`` has the step that an attempt went
back to. ``phase_seconds`` is for goodput.py.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from glm_dist.errors import DataError
from glm_dist.observe.metrics import VALID

METRICS_FILE = "metrics.jsonl"

STARTED = "started"
"""Event at the start of an attempt."""

REWOUND = "rewound"
"""Event after an attempt has gone back to an earlier step."""

Record: TypeAlias = dict[str, Any]

_BLOCK = 1 << 16
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(record: Mapping[str, object]) -> bytes:
    """Encode a record as one line. JSON has no NaN or infinity; they become strings."""
    return (json.dumps(finite_or_text(record), allow_nan=False) + "\n").encode()


def finite_or_text(record: Mapping[str, object]) -> dict[str, object]:
    """Return a record in which NaN and infinity are strings."""
    return {name: _as_json(value) for name, value in record.items()}


def repair_last_line(path: Path) -> None:
    """Make the file end with a complete line after a crash in the middle of a write.

    A partial record is cut off; a complete one without its line break gets it. The file may be
    missing.

    Raises:
        OSError: The file cannot be read or written.
    """
    if not path.exists():
        return
    with path.open("r+b") as stream:
        end = start = stream.seek(0, 2)
        tail = b""
        while start > 0 and b"\n" not in tail:
            start = max(0, start - _BLOCK)
            stream.seek(start)
            tail = stream.read(end - start)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return
        if _is_record(torn):
            stream.seek(end)
            stream.write(b"\n")
        else:
            stream.truncate(end - len(torn))


def read_records(path: Path) -> list[Record]:
    """Read every line in the order written; a partial line at the end is left out.

    Raises:
        DataError: Another line is no record.
    """
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if _is_record(line):
            record = json.loads(line)
            records.append(
                {n: _NOT_FINITE.get(x, x) if _is_text(x) else x for n, x in record.items()}
            )
        elif line.endswith(b"\n"):
            raise DataError(
                f"Line {number} of {path} is not a JSON object with a step and an attempt:"
                f" {line[:60].decode(errors='replace').rstrip()}\n"
                "  Remove the line; the others do not depend on it.",
                key=str(path),
                value=number,
                fix=f"sed -i {number}d {path}",
            )
    return records


def sound_records(path: Path) -> Iterator[Record]:
    """Yield the records line by line, without damaged lines; nothing if there is no file."""
    try:
        with path.open("rb") as stream:
            for line in stream:
                record = record_of(line)
                if record is not None:
                    yield record
    except FileNotFoundError:
        return


def record_of(line: bytes) -> Record | None:
    """Decode a line; None if it is damaged. NaN and infinity stay strings."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and "step" in record and "attempt" in record
    return record if is_record else None


def final_records(records: list[Record]) -> list[Record]:
    """Merge attempts: what is repeated from a step on replaces what was recorded before.

    Args:
        records: Records in the order of the file.

    Returns:
        Metric records and events by step, without steps that a later attempt, or the same one after
        it had rewound, repeated.
    """
    returns = [
        ((r["attempt"], number if r["event"] == REWOUND else -1), r["step"])
        for number, r in enumerate(records)
        if r.get("event") in (STARTED, REWOUND)
    ]
    kept = [
        record
        for number, record in enumerate(records)
        if all(
            record["step"] <= step
            for moment, step in returns
            if moment > (record["attempt"], number)
        )
    ]
    return sorted(kept, key=lambda record: (record["step"], record["attempt"]))


def metrics_before(path: Path, *, attempt: int, step: int) -> list[Record]:
    """Return the metrics of earlier attempts that an attempt continues, without repeated steps.

    Args:
        path: The file; may be missing.
        attempt: Number of the attempt that begins.
        step: Steps done before it.
    """
    earlier = [
        {n: _NOT_FINITE.get(x, x) if _is_text(x) else x for n, x in record.items()}
        for record in sound_records(path)
        if record["attempt"] < attempt
    ]
    return [
        {name: value for name, value in record.items() if name not in ("time", "phase_seconds")}
        for record in final_records(earlier)
        if "event" not in record and record["step"] <= step
    ]


def last_validation(path: Path) -> dict[str, float]:
    """Return the metrics of the last validation by name; empty if there was none.

    Raises:
        DataError: See ``read_records``.
    """
    for record in reversed(final_records(read_records(path))):
        found = {name: float(value) for name, value in record.items() if name.startswith(VALID)}
        if found:
            return found
    return {}


def _as_json(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_record(line: bytes) -> bool:
    return record_of(line) is not None
