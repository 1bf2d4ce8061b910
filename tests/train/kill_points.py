"""A training program that is killed at a named point of a save, with and without the other rank."""

import functools
import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glm_dist.cli.main import main_train

POINT = "KILL_POINT"
"""Variable with the point at which the rank that has it kills itself."""


@dataclass(frozen=True)
class Point:
    """A call during training."""

    module: str
    """Below ``glm_dist``; the name is patched where it is looked up."""
    function: str
    when: str
    """``before``, ``after``, or ``half`` of what it writes."""
    nth: int
    """Call that is the last, from 1."""

    def __str__(self) -> str:
        return f"{self.when} {self.module}:{self.function} {self.nth}"

    @classmethod
    def parse(cls, text: str) -> "Point":
        """Read what ``str`` wrote."""
        when, name, nth = text.split()
        module, _, function = name.partition(":")
        return cls(module, function, when, int(nth))


ON_EVERY_RANK = (
    Point("checkpoint.save", "write_tensors", "before", 2),
    Point("checkpoint.storage", "_HashingStream.write", "half", 40),
    Point("checkpoint.save", "write_tensors", "after", 2),
    Point("checkpoint.save", "fsync_folder", "after", 3),
    Point("checkpoint.save", "_check_written", "before", 3),
    Point("checkpoint.save", "_check_written", "after", 2),
    Point("checkpoint.snapshot", "Snapshot.take", "before", 2),
    Point("checkpoint.snapshot", "Snapshot.take", "after", 3),
    Point("train.saver", "save_state", "after", 2),
)
ON_THE_FIRST_RANK = (
    Point("checkpoint.retention", "create_staging", "before", 2),
    Point("checkpoint.retention", "create_staging", "after", 2),
    Point("checkpoint.save", "_write_manifest", "before", 2),
    Point("checkpoint.save", "write_file", "half", 2),
    Point("checkpoint.save", "_write_manifest", "after", 2),
    Point("checkpoint.save", "publish", "before", 2),
    Point("checkpoint.folders", "fsync_folder", "before", 3),
    Point("checkpoint.save", "publish", "after", 3),
    Point("checkpoint.retention", "_remove_older", "before", 4),
    Point("checkpoint.folders", "shutil.rmtree", "before", 2),
    Point("checkpoint.folders", "shutil.rmtree", "half", 2),
    Point("checkpoint.retention", "_remove_older", "after", 4),
)


def killed_program(program: Callable[[], int] = main_train) -> int:
    """A training program that ends at the point of its environment."""
    if os.environ.get(POINT):
        patch(Point.parse(os.environ[POINT]))
    return program()


def patch(point: Point) -> None:
    """Let the process die at a point."""
    owner: Any = importlib.import_module(f"glm_dist.{point.module}")
    *parents, name = point.function.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    kept = getattr(owner, name)
    calls = 0

    @functools.wraps(kept)
    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != point.nth:
            return kept(*arguments, **named)
        if point.when == "half":
            _half(point, kept, arguments)
        elif point.when == "after":
            kept(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(owner, name, dying)


def _half(point: Point, kept: Any, arguments: tuple[Any, ...]) -> None:
    """Do half of the work."""
    if point.function == "shutil.rmtree":
        sorted(arguments[0].iterdir())[0].unlink()
        return
    target, content = arguments
    if point.function == "write_file":
        target.write_bytes(content[: len(content) // 2])
    else:
        kept(target, memoryview(content).cast("B")[: len(content) // 2])
