"""A real SLURM of virtual nodes on this machine, and the quickstart's script as its job."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glm_dist.observe.metrics_file import read_records
from tests.train.jobs import ROOT, clean_environment, make_files
from tests.train.test_job import weights_of

TOOL = os.environ.get("GLM_SLURM_CLUSTER_TOOL", "")
END_SECONDS = 400
STEPS = 60

# Slow enough to be met in the middle, with the save's own events in the records.
OVERRIDES = (
    f"run.steps={STEPS}",
    f"lr_schedule.decay_steps={STEPS}",
    "batch.micro_batch_size=1",
    "checkpoint.interval=10",
    "checkpoint.keep_last=3",
    "evaluation.interval=0",
    "zero=stage1",
)


@dataclass
class Cluster:
    """Three nodes, and a folder for the runs."""

    folder: Path
    environ: dict[str, str]
    typed: list[str]
    on: Sequence[str] = ()
    """What a command begins with to run on the host of SLURM's controller."""

    def tool(self, *arguments: str) -> None:
        """Call the tool."""
        subprocess.run([*self.on, TOOL, *arguments], env=self.environ, check=True, timeout=300)

    def call(self, *command: str) -> str:
        """Call a program of SLURM's; return its output."""
        done = subprocess.run(
            [*self.on, *command],
            env=self.environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, name: str, *more: str, options: tuple[str, ...] = ()) -> "Job":
        """Submit the quickstart's script with a small model."""
        log = self.folder / f"{name}.log"
        script = ("launchers/quickstart.sh", *self.typed, *OVERRIDES, f"run.name={name}", *more)
        said = self.call("sbatch", f"--output={log}", *options, *script)
        return Job(self, re.findall(r"\d+", said)[-1], log, self.folder / "runs" / name)


@dataclass
class Job:
    """A submitted job."""

    cluster: Cluster
    number: str
    log: Path
    run: Path

    def show(self, name: str) -> str:
        """A field of the job."""
        text = self.cluster.call("scontrol", "show", "job", self.number, "--oneliner")
        found = re.search(rf"\b{name}=(\S+)", text)
        return found[1] if found else ""

    def wait_for(self, step: int, *, restarts: int = 0) -> None:
        """Wait until a start of the job has recorded a step."""
        deadline = time.monotonic() + END_SECONDS
        while True:
            records = read_records(self.run / "metrics.jsonl") if self.has_records() else []
            attempt = max((r["attempt"] for r in records), default=0)
            reached = max((r["step"] for r in records if r["attempt"] == attempt), default=0)
            if attempt > restarts and reached >= step:
                return
            assert time.monotonic() < deadline, self.text()
            assert self.show("JobState") in ("PENDING", "RUNNING", "COMPLETING"), self.text()
            time.sleep(0.3)

    def has_records(self) -> bool:
        """True if there are any."""
        return (self.run / "metrics.jsonl").exists()

    def end(self) -> str:
        """Wait for the end; return the state."""
        deadline = time.monotonic() + END_SECONDS
        while (state := self.show("JobState")) in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
            assert time.monotonic() < deadline, f"{state}\n{self.text()}"
            time.sleep(1.0)
        return state

    def text(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else "no log"

    def tasks(self) -> dict[int, int]:
        """Process of each rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environ = dict(
                    line.partition("=")[::2]
                    for line in (folder / "environ")
                    .read_bytes()
                    .decode(errors="replace")
                    .split("\0")
                )
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            is_task = environ.get("SLURM_JOB_ID") == self.number and "SLURM_PROCID" in environ
            if is_task and environ.get("SLURM_STEP_ID") == "0" and b"train.py\0" in command:
                rank = int(environ["SLURM_PROCID"])
                found[rank] = min(found.get(rank, 1 << 30), int(folder.name))
        return found


@contextmanager
def started(nodes: int, port: str, *, on: Sequence[str] = (), **more: str) -> Iterator[Cluster]:
    """Start the nodes, and stop them at the end."""
    # munged refuses folders of others', such as pytest's, which only their owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="glm-dist-slurm-"))
    folder.chmod(0o755)
    environ = clean_environment(
        SLURM_CLUSTER_DIR=str(folder / "cluster"),
        SLURM_CLUSTER_PORT=port,
        PYTHON=sys.executable,
        **more,
    )
    del environ["OMP_NUM_THREADS"]
    environ |= {"CRASH_WAIT": "1", "SLURM_CONF": str(folder / "cluster/slurm.conf")}
    made = Cluster(folder, environ, make_files(folder), on)
    try:
        made.tool("start", str(nodes))
        yield made
    finally:
        made.tool("stop")
        shutil.rmtree(folder, ignore_errors=True)


def check(job: Job, undisturbed: Path, *, attempts: int = 2) -> None:
    """The run is finished, equals the undisturbed one, and lost nothing that was saved."""
    assert (job.run / "finished").exists(), job.text()
    expected, found = weights_of(undisturbed, STEPS), weights_of(job.run, STEPS)
    assert found.keys() == expected.keys()
    assert [n for n in expected if not np.array_equal(found[n], expected[n])] == []
    saved = 0
    starts = []
    for record in read_records(job.run / "metrics.jsonl"):
        if record.get("event") == "started":
            starts.append(record["step"])
            assert record["step"] >= saved, "a start went back behind a completed save"
        if record.get("event") == "checkpoint":
            saved = max(saved, record["step"])
    assert len(starts) >= attempts
