"""Crashes in the rank's log: uncaught exceptions, and the stacks at fatal signals.

A console of many ranks is often gone when somebody asks what happened; the log files stay.
"""

import faulthandler
import logging
import sys
import threading
from types import TracebackType

log = logging.getLogger(__name__)


def log_crashes() -> None:
    """Copy uncaught exceptions of every thread to the log; the console still shows them."""
    before, before_in_threads = sys.excepthook, threading.excepthook

    def main_hook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        _write(error, "uncaught exception")
        before(kind, error, trace)

    def thread_hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            name = arguments.thread.name if arguments.thread else "unknown"
            _write(arguments.exc_value, f"uncaught exception in thread {name}")
        before_in_threads(arguments)

    sys.excepthook = main_hook
    threading.excepthook = thread_hook


def _write(error: BaseException, summary: str) -> None:
    if not isinstance(error, KeyboardInterrupt | SystemExit):
        log.error(summary, exc_info=error, extra={"file_only": True})


def dump_on_fatal_signals(handler: logging.FileHandler) -> None:
    """Write the stacks of all threads to a log file at SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGILL.

    SIGBUS comes from a memory-mapped file that was cut short. Forked data workers inherit this.

    Args:
        handler: Handler of the log file; a later call replaces the file.
    """
    assert handler.stream is not None  # opened at once
    faulthandler.enable(file=handler.stream, all_threads=True)


def forget_fatal_signals() -> None:
    """Write no stacks at fatal signals until the next ``dump_on_fatal_signals``."""
    faulthandler.disable()
