"""``train.py`` that shows where it is: for tests that send a signal at a chosen moment.

STOP_TRIAL is ``<phase>:<folder>``. Each rank that reaches the phase leaves ``<phase>.<rank>``, a
file with its process id, in the folder; and the phase takes longer than usual.
"""

from glm_dist.stop_signals import StopListener

LISTENER = StopListener() if __name__ == "__main__" else None

import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

SLOWED = {
    "joining": ("glm_dist.parallel.process", "_join", 20.0),
    "building": ("glm_dist.train.job", "build_engine", 2.0),
    "first": ("glm_dist.train.loop", "train_step", 0.2),
    "validation": ("glm_dist.train.evaluate", "replica_rows", 1.0),
    "save": ("glm_dist.train.saver", "save_state", 2.0),
}
"""Function that begins each phase, and seconds that it takes longer."""


def my_rank() -> str:
    """Rank of this process."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))


def show(phase: str, folder: Path) -> None:
    """Leave the phase's file."""
    file = folder / f"{phase}.{my_rank()}"
    if not file.exists():
        Path(f"{file}.new").write_text(str(os.getpid()))
        Path(f"{file}.new").rename(file)


def slow_down(phase: str, folder: Path) -> None:
    """Let the function that begins a phase show it and wait; while ranks join, rank 1 is late."""
    module, name, seconds = SLOWED[phase]
    place = import_module(module)
    kept: Callable[..., Any] = getattr(place, name)

    def slowed(*arguments: Any, **options: Any) -> Any:
        show(phase, folder)
        end = time.monotonic() + (0 if phase == "joining" and my_rank() != "1" else seconds)
        while time.monotonic() < end:
            time.sleep(0.05)
        return kept(*arguments, **options)

    setattr(place, name, slowed)


def main() -> int:
    """Slow the phase down, then train."""
    phase, name = os.environ["STOP_TRIAL"].split(":", 1)
    show("started", Path(name))
    if phase in SLOWED:
        slow_down(phase, Path(name))
    status: int = import_module("glm_dist.cli.main").main_train(LISTENER)
    return status


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
