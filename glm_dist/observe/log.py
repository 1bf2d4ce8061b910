"""Logging set-up: one console for the job, one file per rank, and less noise from libraries.

Rank 0 shows INFO, the others WARNING, so that a job of 500 ranks reads like one process; each rank
writes its own INFO lines to ``log/rank_0000.log``. Library loggers start at WARNING: their errors
are never hidden.
"""

import logging
import sys
import warnings
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from glm_dist.errors import ConfigError
from glm_dist.observe.black_box import dump_on_fatal_signals, forget_fatal_signals

CONSOLE_HANDLER = "glm_dist.console"
FILE_HANDLER = "glm_dist.file"

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"

QUIET_LIBRARIES = (
    "DeepSpeed",
    "megatron",
    "torch",
    "c10d-NullHandler-dcp_logger",
    "wandb",
    "aiobotocore",
    "hydra",
    "filelock",
    "urllib3",
    "asyncio",
)
"""Loggers whose INFO lines do not help users of this package."""

OUTDATED_BY_LIBRARIES = r"(torch|deepspeed|megatron|wandb|hydra|omegaconf)(\.|$)"
"""Modules whose deprecation warnings concern only libraries; users cannot act on them."""


def setup_logging(
    rank: int, run_dir: Path | None = None, *, console: Console | None = None
) -> None:
    """Install the console and file handlers; a second call replaces them.

    Args:
        rank: This process in the job.
        run_dir: Lines are also appended to ``log/rank_XXXX.log`` in it;
            None: console only.
        console: Shared with the progress bar, so that lines appear above it; None: stderr.

    Raises:
        ConfigError: The log file cannot be written.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if _is_replaced(handler):
            root.removeHandler(handler)
            if handler.name == FILE_HANDLER:
                forget_fatal_signals()  # its descriptor will be another file's
            handler.close()
    root.setLevel(logging.INFO)
    root.addHandler(_console_handler(rank, console or Console(stderr=True)))
    if run_dir is not None:
        file_handler = _file_handler(rank, run_dir)
        root.addHandler(file_handler)
        dump_on_fatal_signals(file_handler)
    quiet_libraries()


def quiet_libraries() -> None:
    """Raise the log level of libraries; call it again after importing one that sets its own."""
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    deepspeed = logging.getLogger("DeepSpeed")
    for handler in list(deepspeed.handlers):
        deepspeed.removeHandler(handler)
    deepspeed.propagate = True
    logging.captureWarnings(True)
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=OUTDATED_BY_LIBRARIES)


def _is_replaced(handler: logging.Handler) -> bool:
    """Return True for handlers of an earlier call and for plain ones of a library (Hydra)."""
    ours = handler.name in (CONSOLE_HANDLER, FILE_HANDLER)
    return ours or type(handler) in (logging.StreamHandler, logging.FileHandler)


def _console_handler(rank: int, console: Console) -> logging.Handler:
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
        prefix = f"rank {rank}: " if rank else ""
        handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(_ConsoleLine(rank))
    handler.set_name(CONSOLE_HANDLER)
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    # Records that reach the console in another way only go to the file.
    handler.addFilter(lambda record: not getattr(record, "file_only", False))
    if rank:
        # Every rank emits the same warnings; rank 0's are enough on the console.
        handler.addFilter(lambda record: record.name != "py.warnings")
    return handler


def _file_handler(rank: int, run_dir: Path) -> logging.FileHandler:
    path = run_dir / "log" / f"rank_{rank:04d}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}).\n"
            "  Make its folder writable, or set paths.runs to another one.",
            key="paths.runs",
            value=str(path),
            fix="paths.runs=<folder>",
        ) from error
    line = f"%(asctime)s rank={rank} %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(logging.Formatter(line))
    handler.set_name(FILE_HANDLER)
    handler.setLevel(logging.INFO)
    return handler


class _LogFile(logging.FileHandler):
    """File handler that reports a failed write once; logging prints a traceback for each record."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Print one line if the operating system refused a write; any other error is a bug."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            reason = error.strerror or error
            sys.stderr.write(f"warning: {self.baseFilename} misses lines from here on: {reason}\n")


class _ConsoleLine(logging.Formatter):
    """Formatter with time, rank, level and message; the logger's name only if it is a library."""

    def __init__(self, rank: int) -> None:
        head = f"%(asctime)s rank={rank} %(levelname)s"
        super().__init__(f"{head} %(message)s", datefmt=TIME_FORMAT)
        self._foreign = logging.Formatter(f"{head} %(name)s: %(message)s", datefmt=TIME_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        if record.name.partition(".")[0] == "glm_dist":
            return super().format(record)
        return self._foreign.format(record)
