"""Shared parts of the benchmarks: interleaved runs, medians, the machine's state, tables on disk.

Absolute seconds of a shared machine mean little, so things are compared in turns (A B, B A, …)
within one process, and a ratio is the median of the ratios of each turn.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass
class Timing:
    """Seconds of one contestant, one value per round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def relative_to(self, other: "Timing") -> float:
        """Return the median over rounds of own seconds by the other's; below 1 is faster."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def wait_for_device() -> None:
    """Wait for the GPU; do nothing on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], object]) -> float:
    """Measure the seconds of a piece of work on any device."""
    wait_for_device()
    started = time.perf_counter()
    work()
    wait_for_device()
    return time.perf_counter() - started


def paired(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    repeat: int = 1,
) -> dict[str, Timing]:
    """Run contestants interleaved, every other round in the opposite order.

    Args:
        contestants: Name -> work.
        rounds: Measured turns.
        warmup: Turns that are not measured.
        repeat: Calls within a turn; their mean counts as one value.
    """
    timings = {name: Timing() for name in contestants}
    for turn in range(-warmup, rounds):
        names = list(contestants) if turn % 2 == 0 else list(reversed(contestants))
        for name in names:
            work = contestants[name]
            seconds = timed(lambda work=work: [work() for _ in range(repeat)]) / repeat
            if turn >= 0:
                timings[name].seconds.append(seconds)
    return timings


def machine() -> dict[str, Any]:
    """Describe the machine of a result and its state; the load was measured before the run."""
    device = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        device = names[0] if names else device
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "cpu": device,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or None,
    }


@dataclass
class Report:
    """A table with its command and machine."""

    name: str
    """Of the files in the results folder."""
    title: str
    machine: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = field(
        default_factory=lambda: shlex.join(["python", "-m", _module(), *sys.argv[1:]])
    )

    def markdown(self) -> str:
        """Return the table with its head and notes."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        state = ", ".join(f"{name} {value}" for name, value in self.machine.items() if value)
        lines = [f"# {self.title}", "", f"`{self.command}`", "", state, ""]
        lines.append(f"| {' | '.join(columns)} |")
        lines.append(f"|{' --- |' * len(columns)}")
        for row in self.rows:
            lines.append(f"| {' | '.join(cell(row.get(name)) for name in columns)} |")
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"

    def save(self, folder: Path, *, prints: bool = True) -> None:
        """Write JSON and Markdown, and print the Markdown."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "title": self.title,
            "command": self.command,
            "machine": self.machine,
            "rows": self.rows,
            "notes": self.notes,
        }
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(self.markdown())
        if prints:
            print(self.markdown())


def _module() -> str:
    name = getattr(sys.modules["__main__"].__spec__, "name", None) or Path(sys.argv[0]).stem
    return name.removesuffix(".__main__")


def cell(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"


def options(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Declare the common arguments of benchmarks.

    Args:
        description: The script's docstring.
        rounds: Default number of turns.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="turns (default %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of torch (default: all cores)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the tables")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments, and set torch's threads."""
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(parsed.threads)
    return parsed
