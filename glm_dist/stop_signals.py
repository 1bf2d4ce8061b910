"""Stop requests of this process, noted from its first line on.

Batch systems, launchers, containers and people ask a job to stop by a signal: TERM (limit,
preemption, ``docker stop``), USR1 or USR2 (``--signal=USR1@300``), INT (Ctrl-C), HUP (a closed
terminal). A launcher that was killed asks for the same by its absence. All of them are one request,
which ranks agree on (``train/preemption.py``).

Python runs signal handlers in the main thread between two lines, and that thread may wait in a
collective or a library's C code for minutes. So a thread reads the numbers of arriving signals from
a pipe. It also looks after the launchers, and ends the process at a second Ctrl-C. Ctrl-Z suspends
the process as usual, without the timer of the watchdog, which would count the pause.
"""

import contextlib
import faulthandler
import os
import select
import signal
import threading
import time
from types import FrameType

from glm_dist.ancestors import watched_ancestors

STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that ask a job to stop."""

LAUNCHER_GONE = 100
"""Code of a request by absence; codes of the others are the signals' numbers."""

EXIT_INTERRUPTED = 128 + signal.SIGINT

POLL_SECONDS = 0.5
"""Time until a launcher's death is noticed."""

SAME_KEY_SECONDS = 2.0
"""A launcher hands on the terminal's INT that its ranks have had: one Ctrl-C, two signals."""


def describe(code: int) -> str:
    """Name a request, as logs and markers show it.

    Args:
        code: As ``StopListener.code``.
    """
    return "launcher gone" if code == LAUNCHER_GONE else signal.Signals(code).name


class StopListener:
    """Notes the first stop request of this process.

    Create it in the main thread, before anything slow is imported.
    """

    def __init__(self) -> None:
        """Begin to listen. Shells and ``nohup`` let INT and HUP be ignored; these stay so."""
        self.started = time.time()
        """Start of the process, seconds since 1970."""
        self.code = 0
        """The first request: a signal's number or ``LAUNCHER_GONE``; 0 as long as there is none."""
        self._is_forked = False
        self._heard = [n for n in STOP_SIGNALS if not _stays_ignored(n)]
        self._may_pause = signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
        self._terminals = [number for number in (0, 1, 2) if _is_terminal(number)]
        self._first_interrupt: float | None = None
        self._ancestors = watched_ancestors()
        self._output, self._input = os.pipe()
        for end in (self._output, self._input):
            os.set_blocking(end, False)
        self.arm()
        os.register_at_fork(after_in_child=self._leave_to_the_parent)
        threading.Thread(target=self._listen, name="stop listener", daemon=True).start()

    def arm(self) -> None:
        """Install the handlers, again if a library has replaced them; in the main thread."""
        for number in self._heard:
            signal.signal(number, self._remember)
        if self._may_pause:
            signal.signal(signal.SIGTSTP, lambda number, frame: None)
        signal.set_wakeup_fd(self._input, warn_on_full_buffer=False)

    def wait(self, seconds: float) -> bool:
        """Return True as soon as there is a request; False after some time without one.

        Args:
            seconds: That time.
        """
        deadline = time.monotonic() + seconds
        while not self.code and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.code != 0

    def ignore(self) -> None:
        """Ignore all further requests; in the main thread, when the run has ended.

        When the first rank exits with 75, srun and launchers send TERM to the others, which must
        survive to exit with the same status. Python removes its handlers at exit, but ignored
        signals stay ignored.
        """
        for number in self._heard:
            signal.signal(number, signal.SIG_IGN)
        if self._may_pause:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # Only store it: a handler may interrupt any line, even in a save.
        self.code = self.code or number

    def _listen(self) -> None:
        while True:
            select.select([self._output], [], [], POLL_SECONDS)
            with contextlib.suppress(BlockingIOError):
                for number in os.read(self._output, 512):
                    self._arrived(number)
            if not self.code and not all(each.is_alive() for each in self._ancestors):
                self.code = LAUNCHER_GONE

    def _arrived(self, number: int) -> None:
        if number == signal.SIGTSTP:
            # faulthandler's timer runs on and would end the process when it continues; the watchdog
            # sets it again.
            faulthandler.cancel_dump_traceback_later()
            os.kill(os.getpid(), signal.SIGSTOP)
        if number not in STOP_SIGNALS:
            return
        self.code = self.code or number
        if number == signal.SIGHUP:
            self._let_go_of_the_terminal()
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._first_interrupt is None:
                self._first_interrupt = now
            elif now - self._first_interrupt > (SAME_KEY_SECONDS if _is_launched() else 0.0):
                if _speaks():
                    os.write(2, b"interrupted twice: ended without saving\n")
                os._exit(EXIT_INTERRUPTED)

    def _let_go_of_the_terminal(self) -> None:
        """Write nowhere: a closed terminal answers every line with an error, also during a save."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in self._terminals:
            os.dup2(nowhere, number)

    def _leave_to_the_parent(self) -> None:
        """In a forked child, such as a data worker: ignore requests, the rank ends its children.

        Also closes the pipe, since the child's signals would be taken for the rank's.
        """
        if not self._is_forked:
            self._is_forked = True
            self.ignore()
            os.close(self._output)
            os.close(self._input)


def _stays_ignored(number: signal.Signals) -> bool:
    by_shells = (signal.SIGINT, signal.SIGHUP)
    return number in by_shells and signal.getsignal(number) is signal.SIG_IGN


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False


def _is_launched() -> bool:
    return "RANK" in os.environ or "SLURM_PROCID" in os.environ


def _speaks() -> bool:
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return rank == "0"
