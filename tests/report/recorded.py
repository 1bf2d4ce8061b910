"""A run folder as a job would leave it, without training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glm_dist.config.load import dump_config, load_config
from tests.train.jobs import make_files

Line = dict[str, Any]

BEGIN = 1_790_000_000.0


def started(attempt: int, step: int, time: float) -> Line:
    return {
        **{"step": step, "event": "started", "attempt": attempt, "time": BEGIN + time},
        "process_started": BEGIN + time - 5,
    }


def record(attempt: int, step: int, time: float, loss: float, **more: float) -> Line:
    """A line with the metrics of a step."""
    return {
        "step": step,
        "train/loss": loss,
        "train/grad_norm": 1 + loss / 10,
        **more,
        "attempt": attempt,
        "time": BEGIN + time,
        "phase_seconds": {"step": float(step)},
    }


def two_attempts() -> list[Line]:
    """Steps 1 to 6 of an attempt that was killed, of which a second one repeated 5 and 6."""
    first = [record(1, step, 10 + step, 5 - 0.1 * step) for step in range(1, 7)]
    second = [record(2, step, 100 + step, 4 - 0.1 * step) for step in range(5, 9)]
    return [
        *(started(1, 0, 10), *first[:4]),
        {"step": 4, "valid/loss_span": 3.5, "attempt": 1, "time": BEGIN + 14.5},
        {"step": 4, "event": "checkpoint", "path": "x/step_0000004", "bytes": 7, "seconds": 0.5}
        | {"attempt": 1, "time": BEGIN + 14.8},
        *(*first[4:], started(2, 4, 100), *second),
    ]


def write_lines(run: Path, lines: Sequence[Line]) -> Path:
    """Write ``metrics.jsonl``."""
    run.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)
    return run


def write_run(folder: Path, name: str, lines: Sequence[Line], *overrides: str) -> Path:
    """Write a run with a configuration whose corpora exist; it is in ``folder/runs``."""
    config = load_config([*make_files(folder), f"run.name={name}", *overrides])
    run = write_lines(folder / "runs" / name, lines)
    (run / "config.yaml").write_text(dump_config(config))
    return run
