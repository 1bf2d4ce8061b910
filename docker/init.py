"""First process of a container: runs the arguments as a command, hands signals on, waits for ranks.

The kernel drops signals that the first process of a container does not handle, and ends every
process as soon as the first one exits. ``deepspeed`` dies of TERM at once while its ranks, which
notice that, still save. So this program lives until they have exited, and collects the processes
that lost their parents. It works below another init as well, as with ``docker run --init``.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux' prctl
NOT_FOUND = 127


def main(command: Sequence[str]) -> int:
    """Run a command as the first process of a container.

    Args:
        command: Program and arguments.

    Returns:
        The command's exit status. If a signal that was handed on killed it, the status of the last
        process that it left behind: a rank that has saved ends with 75.
    """
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)
    awaited = {signal.SIGCHLD, *FORWARDED}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        child = os.posix_spawnp(command[0], command, os.environ, setsigmask=())
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return NOT_FOUND
    status: int | None = None
    was_asked = False
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            was_asked = True
            for pid in [child] if status is None else _children():
                _send(pid, number)
            continue
        for pid, code in _ended():
            if pid == child:
                status = code
            elif status is not None and status >= 128 and code:
                status = code
        if status is not None and not (was_asked and _has_children()):
            return status


def _ended() -> list[tuple[int, int]]:
    """Collect the processes that have ended; return their numbers and exit statuses."""
    found = []
    while _has_children():
        pid, code = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        code = os.waitstatus_to_exitcode(code)
        found.append((pid, code if code >= 0 else 128 - code))
    return found


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children() -> list[int]:
    """Return the processes that the command left behind."""
    folders = Path("/proc/self/task").glob("*/children")
    return [int(pid) for file in folders for pid in file.read_text().split()]


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
