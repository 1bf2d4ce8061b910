"""Tables of the GPU benchmark, from its rows or from a file that it wrote."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.device_time import KIND_NAMES
from benchmarks.gpu.processes import NOT_RUN
from benchmarks.harness import Report, cell

Row = dict[str, Any]

PROBLEM = ("size", "positions", "dropout", "what")
SPEED = (
    *("ms a step", "fastest", "tokens/s", "useful TFLOP/s", "useful MFU", "MFU", "HFU"),
    *("peak GiB", "note"),
)
DEVICE = (
    *("GPU busy, ms", "GPU idle, ms", "host, ms", "launches", "launches per micro-batch and layer"),
    *(f"{kind}, ms" for kind in KIND_NAMES),
)
CEILINGS = (
    *("best product, TFLOP/s", "at m x n x k", "layer products, TFLOP/s", "of forward, TFLOP/s"),
    *("of inputs, TFLOP/s", "of weights, TFLOP/s", "layer products of a step, ms", "copy, GB/s"),
)
SHORT = ("ms a step", "tokens/s", "useful TFLOP/s", "useful MFU", "MFU", "peak GiB")
CHECK = ("loss of step 3", "norm of step 3")
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-3, 2e-2
"""Relative; between contestants of the same mathematics in bf16."""


def markdown(rows: Sequence[Row], columns: Iterable[str]) -> str:
    """Render the columns that some row has; rows without any of them are left out."""
    kept = [column for column in columns if any(column in row for row in rows)]
    shown = [row for row in rows if any(column in row for column in kept)]
    if not shown:
        return ""
    heads = [column for column in PROBLEM if any(column in row for row in shown)] + kept
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    lines += [f"| {' | '.join(_shown(row, head) for head in heads)} |" for row in shown]
    return "\n".join(lines) + "\n"


def _shown(row: Row, column: str) -> str:
    value = row.get(column)
    return f"{value:.7g}" if column in CHECK and value is not None else cell(value)


def short_table(rows: Sequence[Row]) -> str:
    """Render the table of README.md."""
    return markdown([row for row in rows if isinstance(row.get("ms a step"), float)], SHORT)


def disagreements(rows: Sequence[Row]) -> list[str]:
    """Name contestants that differ from the first of the same mathematics and problem.

    Only without dropout: kernels draw different masks.
    """
    first: dict[tuple[object, ...], Row] = {}
    found = []
    for row in rows:
        if row.get("dropout") != 0 or CHECK[0] not in row:
            continue
        key = (row["size"], row["positions"], row["mathematics"])
        other = first.setdefault(key, row)
        for name, tolerance in zip(CHECK, (LOSS_TOLERANCE, NORM_TOLERANCE), strict=True):
            ours, theirs = row[name], other[name]
            if not abs(ours - theirs) <= tolerance * abs(theirs):
                found.append(
                    f"{row['size']}, {row['positions']}: {name} of {row['what']} is {ours:.6g}, "
                    f"of {other['what']} {theirs:.6g}."
                )
    return found


@dataclass
class GpuReport(Report):
    """Several tables in one file: speed, the device's time, the check, and the ceilings."""

    def markdown(self) -> str:
        """Return the tables with their head and notes."""
        state = ", ".join(f"{name} {value}" for name, value in self.machine.items() if value)
        parts = [f"# {self.title}", f"`{self.command}`", state]
        run = [row for row in self.rows if row.get("note") != NOT_RUN]
        for title, columns in (
            ("Speed", SPEED),
            ("Time of the device, a step", DEVICE),
            ("Loss and gradient norm", CHECK),
            ("Ceilings of the machine", CEILINGS),
        ):
            table = markdown(run, columns)
            parts += [f"## {title}", table.rstrip()] if table else []
        parts += ["\n".join(self.notes)] if self.notes else []
        late = [
            f"{row['what']} ({row['size']}, {row['dropout']:g})"
            for row in self.rows
            if row.get("note") == NOT_RUN
        ]
        parts += [f"Not run, as time was out: {'; '.join(late)}."] if late else []
        different = disagreements(self.rows)
        if different:
            parts += ["Contestants that disagree:", "\n".join(f"- {each}" for each in different)]
        return "\n\n".join(parts) + "\n"


def table_of(file: Path) -> str:
    """Render README.md's table from a JSON file of the benchmark."""
    return short_table(json.loads(file.read_text())["rows"])
