"""Equal processes side by side, each with one thread: they share out the work among themselves."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence

from glm_dist.errors import EXIT_FINISHED
from glm_dist.stop_signals import StopListener

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

POLL_SECONDS = 0.2


def run_side_by_side(command: Sequence[str], count: int, listener: StopListener) -> int:
    """Start processes of one command and wait for them.

    A stop request goes to all of them, and so does the failure of one: the others save and stop.

    Args:
        command: Program and arguments.
        count: Processes.
        listener: Stop requests of this process.

    Returns:
        0 if all of them end well, otherwise the exit status of the first that does not.
    """
    environment = {**os.environ, **ONE_THREAD}
    workers = [subprocess.Popen(command, env=environment) for _ in range(count)]
    status = EXIT_FINISHED
    is_stopped = False
    while any(worker.poll() is None for worker in workers):
        ended = [worker.returncode for worker in workers if worker.returncode]
        status = status or next(iter(ended), EXIT_FINISHED)
        if (status or listener.code) and not is_stopped:
            is_stopped = True
            for worker in workers:
                if worker.poll() is None:
                    worker.send_signal(signal.SIGTERM)
        time.sleep(POLL_SECONDS)
    listener.ignore()
    ended = [worker.returncode for worker in workers if worker.returncode]
    return status or next(iter(ended), EXIT_FINISHED)
