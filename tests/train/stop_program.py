"""``train.py`` that shows where it is: for tests that send a signal at a chosen moment.

STOP_TRIAL is ``<phase>:<folder>``. The first rank to reach the phase slows it down, and every rank
leaves a file ``<phase>.<rank>`` with its process id there.
"""

from glm_dist.stop_signals import StopListener

listener = StopListener()

import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PHASE, FOLDER = os.environ["STOP_TRIAL"].split(":", 1)
RANK = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))


def show(phase: str) -> None:
    """Leave the phase's file."""
    file = Path(FOLDER) / f"{phase}.{RANK}"
    if not file.exists():
        file.with_suffix(".new").write_text(str(os.getpid()))
        file.with_suffix(".new").rename(file)


def slow(module: str, name: str, *, seconds: float, only: str = "") -> None:
    """Let a function show the phase and wait before it does its work."""
    place = import_module(module)
    kept: Callable[..., Any] = getattr(place, name)

    def slowed(*arguments: Any, **options: Any) -> Any:
        show(PHASE)
        if only in ("", RANK):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.05)
        return kept(*arguments, **options)

    setattr(place, name, slowed)


def main() -> int:
    """Slow the phase down, then train."""
    show("started")
    if PHASE == "joining":
        slow("glm_dist.parallel.process", "_join", seconds=20, only="1")
    elif PHASE == "building":
        slow("glm_dist.train.job", "build_engine", seconds=2)
    elif PHASE == "first":
        slow("glm_dist.train.loop", "train_step", seconds=0.2)
    elif PHASE == "validation":
        slow("glm_dist.train.evaluate", "replica_rows", seconds=1)
    elif PHASE == "save":
        slow("glm_dist.train.observers", "save_state", seconds=2)
    return import_module("glm_dist.cli.main").main_train(listener)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
