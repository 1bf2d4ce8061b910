"""Signals under real launchers: start a job, wait for a phase, send a signal, see how it ended."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.environment import default_signals
from tests.train.jobs import BIN, ROOT, clean_environment, free_port, make_files
from tests.train.test_job import losses_of

PROGRAM = "tests/train/stop_program.py"
DEADLINE_SECONDS = 120
OVERRIDES = (
    "lr_schedule.decay_steps=400",
    "checkpoint.interval=1000000",
    "evaluation.interval=0",
    "run.steps=1000000",
    "run.name=trial",
)
PHASES = {
    "validation": ["evaluation.interval=2", "evaluation.rows_per_objective=64"],
    "save": ["checkpoint.interval=3"],
}

# As srun does: variables for each task, signals to all of them, the highest status.
SRUN = """
import os, signal, subprocess, sys, time
tasks = []
for rank in (0, 1):
    own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    tasks.append(subprocess.Popen(sys.argv[1:], env={**os.environ, **own}))
def forward(number, frame):
    for task in tasks:
        if task.poll() is None:
            task.send_signal(number)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, forward)
signal.signal(signal.SIGINT, signal.SIG_IGN)
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):
        forward(signal.SIGTERM, None)
    time.sleep(0.1)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""


def launch_command(launcher: str) -> tuple[list[str], dict[str, str]]:
    """Command in front of the program, and variables."""
    port = str(free_port())
    deepspeed = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", port]
    if launcher == "deepspeed":
        return deepspeed, {}
    if launcher == "container":
        inside = [sys.executable, "docker/init.py", *deepspeed]
        return ["unshare", "--pid", "--fork", "--mount-proc", *inside], {}
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        return [*command, f"--master-port={port}"], {}
    if launcher == "srun":
        step = {
            "SLURM_JOB_ID": "4711",
            "SLURM_STEP_ID": "0",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_NODEID": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        return [sys.executable, "-c", SRUN, sys.executable], step
    return [sys.executable], {}


@dataclass
class Outcome:
    """How a job ended."""

    status: int | None
    """Of the launcher."""
    seconds: float
    """From the signal until the last process had gone."""
    orphans: int
    """Processes left at the deadline."""
    step: int
    """Last step recorded."""
    saved: int
    """Newest checkpoint."""
    stopped: dict[str, object]
    """Content of the marker."""
    text: str = field(repr=False)
    """All output."""


@dataclass
class Trial:
    """A running job."""

    folder: Path
    launcher: str
    process: subprocess.Popen[str]
    signs: Path

    def wait_for(self, name: str, ranks: int) -> None:
        """Wait until ranks have shown a phase."""
        files = [self.signs / f"{name}.{rank}" for rank in range(ranks)]
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not all(file.exists() for file in files):
            assert time.monotonic() < deadline, f"{name} not reached\n{self._output()[-3000:]}"
            assert self.process.poll() is None, self._output()[-3000:]
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is recorded."""
        run = self.folder / "runs" / "trial"
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (run / "metrics.jsonl").exists() or max(losses_of(run), default=0) < step:
            assert time.monotonic() < deadline, f"step {step} not reached"
            assert self.process.poll() is None, self._output()[-3000:]
            time.sleep(0.05)

    def children(self, pid: int) -> list[int]:
        """Child processes of a process."""
        folders = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for file in folders for child in file.read_text().split()]

    def send(self, target: str, number: int) -> None:
        """Send a signal to the launcher, its child, a rank or the launcher's process group."""
        if target == "group":
            os.killpg(self.process.pid, number)
        elif target == "launcher":
            inside = self.process.pid
            if self.launcher == "container":
                (inside,) = self.children(inside)
            os.kill(inside, number)
        elif target == "launch.py":
            (child,) = self.children(self.process.pid)
            os.kill(child, number)
        else:
            os.kill(int((self.signs / f"started.{target[-1]}").read_text()), number)

    def end(self, *, within: float = 60.0) -> Outcome:
        """Wait for every process, those orphaned as well."""
        began = time.monotonic()
        alive = self.members()
        while (alive or self.process.poll() is None) and time.monotonic() < began + within:
            time.sleep(0.05)
            alive = self.members()
        seconds = time.monotonic() - began
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        run = self.folder / "runs" / "trial"
        steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")]
        marker = run / "stopped"
        return Outcome(
            self.process.wait(),
            seconds,
            len(alive),
            max(losses_of(run), default=0) if (run / "metrics.jsonl").exists() else 0,
            max(steps, default=0),
            json.loads(marker.read_text()) if marker.exists() else {},
            self._output(),
        )

    def members(self) -> list[int]:
        """Living processes of this trial, by its mark in their environment."""
        mark = str(self.signs).encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_member = mark in (folder / "environ").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if is_member and state not in "ZX" and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        return found

    def _output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")


def start_trial(
    launcher: str, phase: str, folder: Path, *more: str, program: str = PROGRAM
) -> Trial:
    """Start a job that shows a phase."""
    signs = folder / "signs"
    signs.mkdir()
    command, variables = launch_command(launcher)
    typed = [*make_files(folder), *OVERRIDES, *PHASES.get(phase, []), *more]
    typed += ["parallel=single"] if launcher == "python" else ["parallel=tp2"]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            [*command, PROGRAM, *typed],
            cwd=ROOT,
            env=clean_environment(PYTHONPATH=str(ROOT), STOP_TRIAL=f"{phase}:{signs}", **variables),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=default_signals,
        )
    return Trial(folder, launcher, process, signs)


def stop_in(launcher: str, phase: str, target: str, name: str, folder: Path, *more: str) -> Outcome:
    """Start a job, send a signal in a phase and wait for the end.

    Args:
        launcher: As ``launch_command`` takes it.
        phase: ``step``, ``started`` or one of ``stop_program.SLOWED``.
        target: ``launcher``, ``launch.py``, ``group``, ``rank0`` or ``rank1``.
        name: Name of the signal.
        folder: For all files.
        more: More overrides.
    """
    trial = start_trial(launcher, phase, folder, *more)
    ranks = 1 if launcher == "python" else 2
    trial.wait_for("started", ranks)
    if phase == "step":
        trial.wait_for_step(3)
    else:
        trial.wait_for(phase, ranks)
    trial.send(target, signal.Signals[name])
    return trial.end()
