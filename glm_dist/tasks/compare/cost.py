"""Time that a run took, in its folder, over all its starts that ended by themselves."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from glm_dist.files import exists, write_atomically

COST_FILE = "cost.json"


@dataclass(frozen=True)
class Cost:
    """Time of a run."""

    seconds: float = 0.0
    core_seconds: float = 0.0
    """CPU time of all threads of all its processes."""


def read_cost(folder: Path) -> Cost:
    """Return the time of a run; 0 before its first start has ended."""
    file = folder / COST_FILE
    return Cost(**json.loads(file.read_text(encoding="utf-8"))) if exists(file) else Cost()


def add_cost(folder: Path, more: Cost) -> None:
    """Add the time of a start to that of the earlier ones."""
    before = read_cost(folder)
    total = Cost(before.seconds + more.seconds, before.core_seconds + more.core_seconds)
    write_atomically(folder / COST_FILE, json.dumps(asdict(total)) + "\n")
