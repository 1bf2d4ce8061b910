"""Process that records to Weights & Biases, fed by ``wandb_sink.py``.

A process for it alone: whatever the network, the library or its threads do, training neither waits
nor fails. Lines of JSON come in by standard input: first an order, then one record each, then null.
Warnings go out by standard output, one a line. The process ends by itself after its last record,
or when the training process is gone.
"""

import json
import os
import queue
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from glm_dist.errors import EXIT_BUG
from glm_dist.files import exists
from glm_dist.observe.endings import FINISHED_FILE, read_stopped
from glm_dist.observe.metrics_file import METRICS_FILE, metrics_before

LAST_LINE = "null\n"

MAX_WAITING = 100_000
"""Records kept in memory while the library does not take them; further ones are dropped."""

SUPERSEDED = "superseded"
"""Folder of offline folders whose records a later one repeats."""

TEARDOWN_SECONDS = 3.0
"""Time for the library to end its own processes and threads after the last record was stored."""

Tell = Callable[[str], None]
"""Hands a warning to the training process."""


@dataclass(frozen=True)
class Order:
    """All that the process must know to open the run."""

    project: str
    entity: str | None
    name: str
    run_id: str
    online: bool
    folder: str
    config: dict[str, Any]
    probe_seconds: float
    """Longest time for the server's first answer."""
    init_seconds: float
    """Longest time for the connection; then records stay on this machine."""
    finish_seconds: float
    """Longest time for the upload of what is left at the end."""
    training_pid: int
    """Process whose use of the machine is shown."""
    attempt: int = 1
    """Number of this start of the run."""
    first_step: int = 0
    """Steps done before."""
    marker_seconds: float = 3.0
    """Longest wait for the file that says how the run has ended."""

    def encode(self) -> str:
        """Return the order as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def main() -> None:
    """Record until the last line, and end this process and those that the library started."""
    warnings = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no warning of ours
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        # Sent to all processes of a job. The training process says when it ends.
        signal.signal(getattr(signal, name), signal.SIG_IGN)

    def tell(text: str) -> None:
        try:
            warnings.write(text.replace("\n", " ") + "\n")
        except OSError:
            return  # the training process was killed

    order = Order(**json.loads(sys.stdin.readline()))
    lines = _received()
    threading.Thread(target=_follow, args=(order,), daemon=True).start()
    with _Reported(tell):
        import wandb

        record(wandb, order, lines, tell)
        _end_after(TEARDOWN_SECONDS)
        wandb.teardown()
    _end()


class _Reported:
    """Context that reports the first exception of the library instead of raising it."""

    def __init__(self, tell: Tell, prefix: str = "") -> None:
        self._tell = tell
        self._prefix = prefix
        self._has_failed = False

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if not self._has_failed:
            self._tell(f"{self._prefix}{type(error).__name__}: {error}")
        self._has_failed = True
        return True


def record(wandb: Any, order: Order, lines: Iterable[str], tell: Tell) -> None:
    """Open the run, record the lines, and close it.

    Args:
        wandb: The library.
        order: Names the run.
        lines: Records as JSON; null is the last.
        tell: Takes warnings.
    """
    run = _open(wandb, order, tell)
    reported = _Reported(tell)
    for line in lines:
        values = json.loads(line)
        if values is None:
            break
        with reported:  # the next record may work
            run.log(values)
    _end_after(
        order.finish_seconds,
        lambda: tell(
            f"the upload took more than {order.finish_seconds:g} s;"
            f" the rest is in {order.folder}/wandb, for `wandb sync`"
        ),
    )
    run.finish(exit_code=_exit_code(order))


def _replay(run: Any, order: Order) -> None:
    """Record the earlier attempts again, in place of their own offline folders.

    Each offline folder begins at row 0 when it is synced, so a second one of the same run would
    overwrite the rows of the first. So the newest one has all of them, and the others are moved.
    """
    folder = Path(order.folder)
    path = folder / METRICS_FILE
    for values in metrics_before(path, attempt=order.attempt, step=order.first_step):
        run.log(values)
    superseded = folder / "wandb" / SUPERSEDED
    for older in _offline_folders(order):
        if older.resolve() != Path(run.dir).resolve().parent:
            superseded.mkdir(exist_ok=True)
            older.rename(superseded / older.name)


def _offline_folders(order: Order) -> list[Path]:
    files = Path(order.folder).glob(f"wandb/offline-run-*/run-{order.run_id}.wandb")
    return sorted(file.parent for file in files)


def _exit_code(order: Order) -> int:
    """Return the exit status of the run, from the files in which it says how it has ended."""
    folder = Path(order.folder)
    deadline = time.monotonic() + order.marker_seconds
    while True:
        if exists(folder / FINISHED_FILE):
            return 0
        stopped = read_stopped(folder)
        if stopped is not None and stopped.attempt >= order.attempt:
            return stopped.status
        if time.monotonic() > deadline or os.getppid() != order.training_pid:
            return EXIT_BUG
        time.sleep(0.05)


def _open(wandb: Any, order: Order, tell: Tell) -> Any:
    """Open the run online, or offline if that fails."""
    if order.online:
        with _Reported(tell, "recording offline, for `wandb sync`: "):
            _check_reachable(wandb.setup().settings.base_url, order.probe_seconds)
            run = _init(wandb, order, mode="online")
            if [each for each in _offline_folders(order) if not list(each.glob("*.synced"))]:
                tell(
                    "earlier attempts were recorded offline: `wandb sync` them before this one ends"
                )
            return run
        wandb.teardown()  # its service still holds the run's id
    run = _init(wandb, order, mode="offline")
    with _Reported(tell, "the records of earlier attempts are not repeated: "):
        _replay(run, order)
    return run


def _check_reachable(url: str, seconds: float) -> None:
    """Ask the server for anything: the library would wait for minutes.

    Raises:
        OSError: Nobody answers.
    """
    try:
        urlopen(url, timeout=seconds).close()
    except HTTPError:
        return  # an answer
    except URLError as error:
        if isinstance(error.reason, OSError) and not isinstance(error.reason, ssl.SSLError):
            raise
        # Certificates and the like are judged by the library, which has settings for them.


def _init(wandb: Any, order: Order, *, mode: str) -> Any:
    settings = wandb.Settings(silent=True, console="off", init_timeout=order.init_seconds)
    if hasattr(settings, "x_stats_pid"):  # not in every version
        settings.x_stats_pid = order.training_pid
    run = wandb.init(
        project=order.project,
        entity=order.entity,
        name=order.name,
        id=order.run_id,
        resume="allow",
        mode=mode,
        dir=order.folder,
        config=order.config,
        settings=settings,
    )
    run.define_metric("*", step_metric="step")
    return run


def _received() -> Iterator[str]:
    """Return the lines of standard input, which are taken from now on.

    So the training process keeps none of them, and loses none if it is killed.
    """
    waiting: queue.Queue[str] = queue.Queue(MAX_WAITING)

    def read() -> None:
        for line in sys.stdin:
            if line.endswith("\n"):  # the training process was not killed in this line
                waiting.put(line)
        waiting.put(LAST_LINE)

    threading.Thread(target=read, daemon=True).start()
    return iter(waiting.get, "")


def _follow(order: Order) -> None:
    """End some time after the training process, even if the library hangs."""
    while os.getppid() == order.training_pid:
        time.sleep(1.0)
    _end_after(order.finish_seconds)


def _end_after(seconds: float, say: Callable[[], None] = lambda: None) -> None:
    """End this process after a time, unless it has ended."""

    def end() -> None:
        say()
        _end()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _end() -> None:
    """End this process with all that the library started: they are one process group."""
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
