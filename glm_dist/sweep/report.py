"""The table of a sweep: on the console, as ``sweep.md`` and as ``sweep.json``."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from glm_dist.files import write_atomically
from glm_dist.observe.metrics_file import finite_or_text
from glm_dist.sweep.comparison import Group, Row, Run
from glm_dist.tasks.intervals import Interval

MARKDOWN_FILE = "sweep.md"
JSON_FILE = "sweep.json"


def write_report(folder: Path, groups: Sequence[Group], *, command: str) -> None:
    """Write both files.

    Args:
        folder: Folder of the sweep.
        groups: Of ``compare``.
        command: Command line of the sweep.

    Raises:
        OSError: They cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MARKDOWN_FILE, as_markdown(groups, command=command))
    content = {"version": 1, "command": command, "groups": [_group_json(each) for each in groups]}
    write_atomically(folder / JSON_FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")


def as_markdown(groups: Sequence[Group], *, command: str) -> str:
    """Write the tables as a document."""
    parts = ["# Sweep\n", f"```\n{command}\n```\n"]
    for group in groups:
        header, rows = _header(group), [_cells(group, row) for row in group.rows]
        lines = [header, ["---"] * len(header), *rows]
        parts.append(f"## {_title(group)}\n")
        parts.append("".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines))
    parts.append("".join(f"{line}\n" for line in notes(groups)))
    return "\n".join(parts)


def as_tables(groups: Sequence[Group]) -> Iterator[Table]:
    """Write the tables for a console."""
    for group in groups:
        table = Table(*map(escape, _header(group)), title=escape(_title(group)))
        for row in group.rows:
            table.add_row(*map(escape, _cells(group, row)), style="bold" if row.is_best else None)
        yield table


def notes(groups: Sequence[Group]) -> Iterator[str]:
    """Explain the numbers, and name the runs that are missing in them."""
    rows = [row for group in groups for row in group.rows]
    if any(row.num_finished > 1 for row in rows):
        yield "Intervals of means over seeds are Student's t; the choice of examples comes on top."
    if any(row.pairs for row in rows):
        yield (
            "Differences are paired: same seeds, same examples. They are separated where the"
            " interval leaves out 0."
        )
    if any(row.pairs == 1 for row in rows):
        yield "With a single seed, intervals say nothing about other seeds."
    if any(row.is_best for row in rows):
        remedy = "; see the test column" if any(row.test for row in rows) else ""
        yield f"The best setting is chosen on validation data, where it looks too good{remedy}."
    for row in rows:
        for run in row.runs:
            if run.outcome is None:
                yield f"Not counted: {run.point.name} ({run.status})."


def _title(group: Group) -> str:
    what = " ".join(f"{key}={value}" for key, value in group.title)
    sizes = []
    if group.num_examples:
        width = group.half_width
        noise = "" if math.isnan(width) else f" (± {width:.4f} for a single run)"
        sizes.append(f"{group.num_examples:,} validation examples{noise}")
    if group.num_test_examples:
        sizes.append(f"{group.num_test_examples:,} test examples")
    return ", ".join(part for part in (what, *sizes) if part) or "all settings"


def _header(group: Group) -> list[str]:
    names = [key for key, _ in group.rows[0].setting] or ["setting"]
    found = [group.metric or "metric", "95 % interval"]
    if group.num_test_examples:
        found += ["test", "95 % interval"]
    found.append("seeds")
    if len(group.rows) == 1:
        return [*names, *found]
    return [*names, *found, "", "to the baseline", "95 % interval", ""]


def _cells(group: Group, row: Row) -> list[str]:
    cells = [value for _, value in row.setting] or ["all"]
    cells += _number(row.value)
    if group.num_test_examples:
        cells += _number(row.test)
    done = row.num_finished
    cells.append(f"{done}" if done == len(row.runs) else f"{done} of {len(row.runs)}")
    if len(group.rows) == 1:
        return cells
    cells.append("best" if row.is_best else "")
    if row.is_baseline:
        return [*cells, "baseline", "", ""]
    if row.difference is None:
        return [*cells, "", "", ""]
    return [*cells, *_number(row.difference, signed=True), _verdict(row.difference)]


def _verdict(difference: Interval) -> str:
    if math.isnan(difference.low):
        return ""
    return "separated" if difference.is_separated else "not separated"


def _number(found: Interval | None, *, signed: bool = False) -> list[str]:
    if found is None:
        return ["", ""]
    shape = "{:+.4f}" if signed else "{:.4f}"
    value = shape.format(found.value)
    if math.isnan(found.low):
        return [value, ""]
    return [value, f"{shape.format(found.low)} to {shape.format(found.high)}"]


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "settings": dict(group.title),
        "metric": group.metric,
        "higher_is_better": group.higher_is_better,
        "examples": group.num_examples,
        "test_examples": group.num_test_examples,
        "rows": [_row_json(row) for row in group.rows],
    }


def _row_json(row: Row) -> dict[str, Any]:
    difference = row.difference
    return {
        "settings": dict(row.setting),
        "valid": _interval_json(row.value),
        "test": _interval_json(row.test),
        "seeds": row.num_finished,
        "is_best": row.is_best,
        "is_baseline": row.is_baseline,
        "difference": _interval_json(difference),
        "pairs": row.pairs,
        "is_separated": difference.is_separated if difference else None,
        "runs": [_run_json(run) for run in row.runs],
    }


def _run_json(run: Run) -> dict[str, Any]:
    metrics = run.outcome.valid.metrics if run.outcome else {}
    return {
        "name": run.point.name,
        "seed": run.seed,
        "status": run.status,
        "metrics": finite_or_text({name: each.value for name, each in metrics.items()}),
    }


def _interval_json(found: Interval | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    return {name: None if math.isnan(end) else end for name, end in asdict(found).items()}
