"""Stop requests of one process, in real processes that get real signals."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glm_dist.stop_signals import describe
from tests.environment import default_signals

ROOT = Path(__file__).resolve().parents[1]

# A mutex locked twice: no signal interrupts this call, as none interrupts a collective.
STUCK = """
import ctypes
mutex = ctypes.create_string_buffer(64)
ctypes.CDLL(None).pthread_mutex_lock(mutex)
ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""

LISTENS = """
from glm_dist.stop_signals import StopListener
listener = StopListener()
import os, threading
def tell():
    print("listens", flush=True)
    while not listener.wait(60): pass
    print(listener.code, flush=True)
threading.Thread(target=tell, daemon=True).start()
"""


def start(*command: str, **variables: str) -> subprocess.Popen[str]:
    """Start a program that prints ``listens``; wait until it does."""
    kept = {name: value for name, value in os.environ.items() if name != "RANK"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )
    assert line_of(process) == "listens\n"
    return process


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line of output."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 120.0)[0], "no output"
    return process.stdout.readline()


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_noted_while_the_main_thread_is_stuck(name: str) -> None:
    process = start(sys.executable, "-c", LISTENS + STUCK)

    process.send_signal(signal.Signals[name])

    assert describe(int(line_of(process))) == name
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_second_interrupt_ends_a_stuck_program_with_one_line() -> None:
    process = start(sys.executable, "-c", LISTENS + STUCK)
    process.send_signal(signal.SIGINT)
    line_of(process)

    process.send_signal(signal.SIGINT)

    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "interrupted twice: ended without saving\n")


def test_one_key_that_reaches_a_rank_twice_is_one_interrupt() -> None:
    process = start(sys.executable, "-c", LISTENS + STUCK, RANK="0")
    process.send_signal(signal.SIGINT)
    line_of(process)

    process.send_signal(signal.SIGINT)  # by the launcher, at once
    process.send_signal(signal.SIGTERM)

    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.kill()
    process.communicate()


def test_what_nohup_ignores_stays_ignored() -> None:
    process = start("nohup", sys.executable, "-c", LISTENS + STUCK)

    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)

    assert describe(int(line_of(process))) == "SIGUSR1"
    process.kill()
    process.communicate()


def test_a_forked_worker_neither_stops_nor_speaks_for_its_rank() -> None:
    forks = LISTENS + (
        "import signal, time\n"
        "ready, tells = os.pipe()\n"
        "child = os.fork()\n"
        "if not child: os.write(tells, b'x'); time.sleep(60)\n"
        "os.read(ready, 1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "os.kill(child, signal.SIGUSR2)\n"
        "told = (os.waitpid(child, os.WNOHANG)[0], listener.wait(1.0))\n"
        "os.kill(child, signal.SIGKILL)\n"
        "print(*told, flush=True)\n"
    )
    process = start(sys.executable, "-c", forks)

    assert line_of(process) == "0 False\n"
    process.kill()
    process.communicate()


def test_a_parent_that_ignores_term_does_not_make_its_job_deaf() -> None:
    process = start(
        "bash", "-c", 'trap "" TERM; exec "$@"', "-", sys.executable, "-c", LISTENS + STUCK
    )

    process.send_signal(signal.SIGTERM)

    assert describe(int(line_of(process))) == "SIGTERM"
    process.kill()
    process.communicate()


@pytest.mark.parametrize("script", ["torchrun", "wrapper.py"])
def test_the_death_of_what_started_a_rank_is_a_request(script: str, tmp_path: Path) -> None:
    launcher = tmp_path / script
    launcher.write_text("import subprocess, sys\nsubprocess.run(sys.argv[1:])\n")
    process = start(sys.executable, str(launcher), sys.executable, "-c", LISTENS + STUCK)
    (child,) = _children(process.pid)

    process.kill()

    assert describe(int(line_of(process))) == "launcher gone"
    os.kill(child, signal.SIGKILL)
    process.communicate()


def test_a_launcher_further_up_counts_as_well(tmp_path: Path) -> None:
    # deepspeed starts launch.py, which starts the ranks and outlives it.
    for name in ("deepspeed", "launch.py"):
        (tmp_path / name).write_text("import subprocess, sys\nsubprocess.run(sys.argv[1:])\n")
    above = [f"{tmp_path}/deepspeed", sys.executable, f"{tmp_path}/launch.py"]
    process = start(sys.executable, *above, sys.executable, "-c", LISTENS + STUCK)
    (middle,) = _children(process.pid)
    (rank,) = _children(middle)

    process.kill()

    assert describe(int(line_of(process))) == "launcher gone"
    for pid in (rank, middle):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def _children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def test_a_pause_is_no_hang() -> None:
    timer = "import faulthandler; faulthandler.dump_traceback_later(1.0, exit=True)"
    process = start(sys.executable, "-c", f"{LISTENS}\n{timer}\nimport time; time.sleep(60)")
    process.send_signal(signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    time.sleep(1.2)  # longer than the timer
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert line_of(process) == f"{int(signal.SIGTERM)}\n"
    process.kill()
    process.communicate()
