"""Stop requests while the ranks of a job look for each other.

A rank that is asked to stop before all have joined cannot vote. If it just left, the others would
wait for it until their deadline. So it leaves a note in the job's store, which all ranks poll from
a thread, and every rank exits with the status of a stopped run.
"""

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.errors import EXIT_STOPPED, LaunchError
from glm_dist.stop_signals import StopListener, describe

POLL_SECONDS = 0.3

LINGER_SECONDS = 3.0
"""Time between the note and the exit: all ranks read it, or all have joined and can vote."""

NOTICE_SECONDS = 2.0
"""Time until a request is noticed that broke the store."""

CLIENT_SECONDS = 5.0
"""Longest wait for the store to answer."""


@contextmanager
def leaving_on_request(launch: LaunchEnvironment, listener: StopListener) -> Iterator[None]:
    """Exit with 75 if any rank is asked to stop while the block runs.

    Args:
        launch: Identity of this process.
        listener: Requests of this process.
    """
    if launch.world_size == 1:
        yield
        return
    ends = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(launch, listener, ends), name="joining", daemon=True
    )
    thread.start()
    try:
        yield
    except RuntimeError:
        # torchrun holds the store: its end breaks the store first, and is noticed a moment later.
        if listener.wait(NOTICE_SECONDS):
            _leave(describe(listener.code), speaks=launch.rank == 0)
        raise
    except LaunchError:
        if listener.code:  # rank 0 was asked as well, and has left with the store
            _leave(describe(listener.code), speaks=False)
        raise
    finally:
        ends.set()
        thread.join()


def _watch(launch: LaunchEnvironment, listener: StopListener, ends: threading.Event) -> None:
    store: TCPStore | None = None
    key = f"glm_dist/stop/{launch.restart}"
    while not ends.wait(POLL_SECONDS):
        store = store or _connect(launch)
        try:
            if store is not None and listener.code:
                store.set(key, describe(listener.code))
            if store is not None and store.check([key]):
                reason = store.get(key).decode()
                if not ends.wait(LINGER_SECONDS):
                    _leave(reason, speaks=launch.rank == 0)
                return
        except RuntimeError:  # the holder of the store has exited
            store = None
        if store is None and listener.code:
            _leave(describe(listener.code), speaks=True)


def _connect(launch: LaunchEnvironment) -> TCPStore | None:
    """Open a connection besides the main thread's; None if nobody listens yet."""
    try:
        # torch retries with a warning each time.
        with socket.create_connection((launch.master_addr, launch.master_port), timeout=1.0):
            pass
        return TCPStore(
            launch.master_addr,
            launch.master_port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=CLIENT_SECONDS),
        )
    except (OSError, RuntimeError):
        return None


def _leave(reason: str, *, speaks: bool) -> None:
    """End the process, whose main thread waits in the store or in gloo."""
    if speaks:
        sys.stderr.write(f"stopped before training; nothing to save reason={reason}\n")
        sys.stderr.flush()
    logging.shutdown()
    os._exit(EXIT_STOPPED)
