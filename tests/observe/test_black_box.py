"""Crashes leave their stacks in the rank's log."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from glm_dist.observe.log import _LogFile

PROGRAM = """
import mmap, os, sys, threading
from pathlib import Path
from glm_dist.observe.black_box import log_crashes
from glm_dist.observe.log import setup_logging

def crash():
    if sys.argv[2] == "bus":
        file = Path(sys.argv[1]) / "corpus.bin"
        file.write_bytes(bytes(8192))
        with file.open("r+b") as opened:
            content = mmap.mmap(opened.fileno(), 8192)
            opened.truncate(0)
            content[5000]
    {}["split"]

setup_logging(3, Path(sys.argv[1]))
log_crashes()
if sys.argv[2] == "thread":
    thread = threading.Thread(target=crash, name="saver")
    thread.start()
    thread.join()
else:
    crash()
"""


@pytest.mark.parametrize(
    ("crash", "status", "lines"),
    [
        ("main", 1, ["uncaught exception", "KeyError: 'split'"]),
        ("thread", 0, ["uncaught exception in thread saver", "KeyError: 'split'"]),
        ("bus", -7, ["Fatal Python error: Bus error", "in crash"]),
    ],
)
def test_a_crash_is_in_the_log_file(
    crash: str, status: int, lines: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), crash],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    text = (tmp_path / "log" / "rank_0003.log").read_text()
    assert done.returncode == status, done.stderr
    for line in lines:
        assert line in text
    if crash != "bus":
        assert done.stderr.count("Traceback") == 1  # not twice on the console


def test_a_full_disk_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = _LogFile("/dev/full")
    logger = logging.Logger("full")
    logger.addHandler(handler)
    for step in range(3):
        logger.warning("step %d", step)
    handler.stream = None  # type: ignore[assignment]  # its close would flush once more

    assert capsys.readouterr().err == (
        "warning: /dev/full misses lines from here on: No space left on device\n"
    )
