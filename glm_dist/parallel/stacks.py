"""Position of a thread in the code: inside an exchange with other ranks, or busy elsewhere.

The Python stack tells more than a phase does: in a pipeline every rank is in the same step, but
only one is not waiting for another.
"""

import faulthandler
import io
import logging
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

EXCHANGES = (
    "torch/distributed/distributed_c10d.py",
    "torch/distributed/_functional_collectives.py",
    "pipeline_parallel/p2p_communication.py",
    "deepspeed/comm/comm.py",
    "deepspeed/comm/torch.py",
    "glm_dist/parallel/exchange.py",
)
"""Files whose innermost frame means that a thread waits for other ranks or for the device."""

ACTIVITIES = {
    ("train/engine.py", "forward_backward"): "forward-backward",
    ("train/engine.py", "evaluate"): "validation, forward",
    ("train/engine.py", "_sum_shared_gradients"): "gradient reduction",
    ("optim/flat_adamw.py", "reduce_gradients"): "gradient reduction",
    ("optim/deepspeed_adapter.py", "reduce_gradients"): "gradient reduction",
    ("train/engine.py", "step"): "update",
}
"""Parts of a step by file and function of this package."""


@dataclass(frozen=True)
class Position:
    """Position of a thread."""

    waits: bool
    """True inside an exchange with other ranks, or in a wait for the device."""
    at: str
    """Innermost function of this package with file and line, and the library's function in it."""
    activity: str
    """Part of the step; empty if unknown."""


def position(frame: FrameType | None) -> Position:
    """Locate a thread by its innermost frame.

    Args:
        frame: The frame; None if the thread has none.
    """
    frames: list[tuple[str, str, int]] = []
    while frame is not None:
        code = frame.f_code
        frames.append((code.co_filename.replace("\\", "/"), code.co_name, frame.f_lineno))
        frame = frame.f_back
    if not frames:
        return Position(False, "no Python code", "")
    ours = [entry for entry in frames if "/glm_dist/" in entry[0]]
    activity = next(
        (
            name
            for file, function, _ in ours
            for (end, wanted), name in ACTIVITIES.items()
            if function == wanted and file.endswith(f"glm_dist/{end}")
        ),
        "",
    )
    at = _text(frames[0])
    if ours and ours[0] != frames[0]:
        at = f"{at}, called by {_text(ours[0])}"
    return Position(frames[0][0].endswith(EXCHANGES), at, activity)


def _text(entry: tuple[str, str, int]) -> str:
    file, function, line = entry
    parts = Path(file).parts
    start = len(parts) - 1 - parts[::-1].index("glm_dist") if "glm_dist" in parts else -2
    return f"{function} ({'/'.join(parts[start:])}:{line})"


def main_position() -> Position:
    """Locate the main thread of this process."""
    return position(sys._current_frames().get(threading.main_thread().ident or 0))


def raised_position(error: BaseException) -> Position:
    """Locate the line that raised an exception.

    Args:
        error: A caught exception.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return position(trace.tb_frame if trace is not None else None)


def log_stream() -> TextIO:
    """Return the stream of this process's log file; standard error before there is one."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and handler.stream is not None:
            return handler.stream
    return sys.stderr


def dump_stacks() -> None:
    """Write the stacks of all threads to this process's log file."""
    stream = log_stream()
    try:
        faulthandler.dump_traceback(file=stream, all_threads=True)
    except (OSError, ValueError, io.UnsupportedOperation):
        return  # a closed stream, or one without a descriptor; the verdict has the main thread
