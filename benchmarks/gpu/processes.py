"""Contestants one after another, each in its own process, within a budget of time.

An engine's hooks and a compiler's caches keep memory alive, so nothing is measured in a process
that measured something else before. A process that crashes, or runs out of time or memory, leaves a
row that says so. While one is measured, the next already imports its libraries.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.contestants import ATTENTION, Job
from benchmarks.harness import ROOT

LEAST = 20.0
"""Seconds under which no process is started any more."""
NOT_RUN = "not run: out of time"
GRACE = 5.0
"""Seconds between the request to end and the end."""
TRIES = {"TRITON_CACHE_AUTOTUNING": "1"}
"""Results of Triton's trials are kept on the disk for the next process."""

Command = Callable[[Job, Path], list[str]]
"""Makes the command line of a job that appends its results to a file."""


def can_wait(job: Job) -> bool:
    """Return True if the job's process does nothing before it is asked to."""
    return job.contestant.kind != ATTENTION


def command_of(job: Job, file: Path, output: Path) -> list[str]:
    """Return the command line of a job; the step's waits for a line on standard input.

    Args:
        job: Contestant and problem.
        file: Gets the results, a line of JSON each.
        output: Folder of tables that the job writes itself.
    """
    if job.contestant.kind == ATTENTION:
        own = ["--rounds", "10", "--output", str(output.resolve())]
        return [sys.executable, "-m", "benchmarks.attention", *own]
    return [
        *[sys.executable, "-m", "benchmarks.gpu.child"],
        *[json.dumps(job.as_json()), str(file), "--wait"],
    ]


@dataclass
class Budget:
    """Seconds that are left for everything."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def left(self) -> float:
        return self.seconds - (self.clock() - self.started)


class Process:
    """The process of a job, which waits until ``finish`` is called."""

    def __init__(self, job: Job, command: Sequence[str], file: Path, log: IO[str]) -> None:
        self.job = job
        self._file = file
        self._log = log
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | TRIES,
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, limit: float) -> dict[str, Any]:
        """Let it work, wait for its end, and return what it found.

        Args:
            limit: Seconds after which it is killed.
        """
        started = time.monotonic()
        note = ""
        try:
            self._process.communicate("\n", timeout=limit)
        except subprocess.TimeoutExpired:
            self.kill()
            note = f"stopped after {limit:.0f} s"
        except BaseException:
            self.kill()
            raise
        found: dict[str, Any] = {}
        if self._file.exists():
            for line in self._file.read_text().splitlines():
                found |= json.loads(line)
        output = self._output()
        self._log.write(f"\n== {self.job}: {time.monotonic() - started:.0f} s\n{output}")
        self._log.flush()
        if not note and self._process.returncode != 0 and "ms a step" not in found:
            last = output.strip().splitlines()[-1:] or [f"exit status {self._process.returncode}"]
            note = f"failed: {last[0][:120]}"
        elif not note and self._process.returncode != 0:
            note = "" if isinstance(found["ms a step"], str) else "measured, not profiled"
        return found | ({"note": note} if note else {})

    def kill(self) -> None:
        """End it and all that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
                try:
                    self._process.communicate(timeout=GRACE)
                except subprocess.TimeoutExpired:
                    continue

    def _output(self) -> str:
        self._errors.seek(0)
        text = self._errors.read()
        self._errors.close()
        return text


def results(
    jobs: Sequence[Job],
    budget: Budget,
    *,
    limit: float,
    log: Path,
    command: Command,
    ahead: bool = True,
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run jobs in their order; yield each with its figures, or a note where it has none.

    Args:
        jobs: The most important first.
        budget: Time for all of them.
        limit: Seconds of one job.
        log: File that gets the output of all processes.
        command: Makes the command lines.
        ahead: Start the next process while one works.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("w") as written:

        def start(index: int) -> Process:
            file = Path(folder) / f"{index}.jsonl"
            return Process(jobs[index], command(jobs[index], file), file, written)

        waiting: Process | None = None
        try:
            for index, job in enumerate(jobs):
                if budget.left < LEAST:
                    yield job, {"note": NOT_RUN}
                    continue
                process, waiting = waiting or start(index), None
                if ahead and index + 1 < len(jobs) and can_wait(jobs[index + 1]):
                    waiting = start(index + 1)
                yield job, process.finish(min(limit, budget.left))
        finally:
            if waiting is not None:
                waiting.kill()
