"""The batch scripts on a real SLURM of virtual nodes, on this machine.

Needs root, SLURM from the distribution's packages, and GLM_SLURM_CLUSTER_TOOL: a program that
starts and stops such a cluster (`start N`, `stop`, `kill-node NAME`, `boot-node NAME`; its folder
is SLURM_CLUSTER_DIR, its first port SLURM_CLUSTER_PORT).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from glm_dist.observe.metrics_file import read_records
from tests.train.jobs import ROOT, clean_environment, make_files
from tests.train.test_job import weights_of

TOOL = os.environ.get("GLM_SLURM_CLUSTER_TOOL", "")
PORT = "17317"
END_SECONDS = 400
STEPS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not TOOL or os.getuid() != 0, reason="needs root and GLM_SLURM_CLUSTER_TOOL, see the module"
    ),
]

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

    def tool(self, *arguments: str) -> None:
        """Call the tool."""
        subprocess.run([TOOL, *arguments], env=self.environ, check=True, timeout=300)

    def call(self, *command: str) -> str:
        """Call a program of SLURM's; return its output."""
        done = subprocess.run(
            command,
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start the nodes, and stop them at the end."""
    # munged refuses folders of others', such as pytest's, which only their owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="glm-dist-slurm-"))
    folder.chmod(0o755)
    environ = clean_environment(
        SLURM_CLUSTER_DIR=str(folder / "cluster"), SLURM_CLUSTER_PORT=PORT, PYTHON=sys.executable
    )
    del environ["OMP_NUM_THREADS"]
    environ |= {"CRASH_WAIT": "1", "SLURM_CONF": str(folder / "cluster/slurm.conf")}
    made = Cluster(folder, environ, make_files(folder))
    try:
        made.tool("start", "3")
        yield made
    finally:
        made.tool("stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Path:
    """The run folder of a job that nobody touches."""
    job = cluster.submit("undisturbed")
    assert job.end() == "COMPLETED", job.text()
    return job.run


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


@pytest.mark.parametrize(
    "signal_it",
    [
        ["scancel", "--signal=USR1"],
        ["scancel", "--batch", "--signal=USR1"],
        ["scontrol", "requeue"],
    ],
    ids=["tasks", "batch shell", "requeue"],
)
def test_a_job_that_is_asked_to_stop_goes_on(
    cluster: Cluster, undisturbed: Path, signal_it: list[str]
) -> None:
    job = cluster.submit(f"asked_{'_'.join(signal_it).replace('-', '').replace('=', '')}")
    job.wait_for(13)
    cluster.call(*signal_it, job.number)
    assert job.end() == "COMPLETED", job.text()
    check(job, undisturbed)


def test_a_request_before_anything_listens_does_not_fail_the_job(
    cluster: Cluster, undisturbed: Path
) -> None:
    job = cluster.submit("early")
    deadline = time.monotonic() + 60
    while not job.tasks():
        assert time.monotonic() < deadline, job.text()
        time.sleep(0.02)
    cluster.call("scancel", "--signal=USR1", job.number)
    assert job.end() == "COMPLETED", job.text()
    assert int(job.show("Restarts")) >= 1
    check(job, undisturbed, attempts=1)


def test_a_job_near_its_time_limit_saves_and_goes_on(cluster: Cluster, undisturbed: Path) -> None:
    # SLURM looks at limits every half minute, so the signal comes after 90 to 120 s. A rank pauses
    # until then.
    job = cluster.submit("limit", options=("--time=3", "--signal=B:USR1@60"))
    job.wait_for(13)
    paused = job.tasks()[3]
    os.kill(paused, signal.SIGSTOP)
    while job.show("RunTime") < "00:02:05":
        time.sleep(1.0)
    os.kill(paused, signal.SIGCONT)
    assert job.end() == "COMPLETED", job.text()
    assert job.show("Restarts") == "1"
    check(job, undisturbed)


def test_a_job_cancelled_in_a_validation_has_saved(cluster: Cluster, undisturbed: Path) -> None:
    # KillWait is 5 s on these nodes, and this validation longer.
    long = ("evaluation.interval=15", "evaluation.rows_per_objective=4000")
    job = cluster.submit("cancelled", *long)
    job.wait_for(14)
    time.sleep(1.0)
    cluster.call("scancel", job.number)
    assert job.end() == "CANCELLED", job.text()
    steps = [int(p.name[5:]) for p in (job.run / "checkpoints").glob("step_*")]
    assert max(steps) >= 15, job.text()
    job = cluster.submit("cancelled")
    assert job.end() == "COMPLETED", job.text()
    check(job, undisturbed)


def test_a_job_with_a_killed_rank_goes_on(cluster: Cluster, undisturbed: Path) -> None:
    job = cluster.submit("killed")
    job.wait_for(13)
    os.kill(job.tasks()[3], signal.SIGKILL)
    assert job.end() == "COMPLETED", job.text()
    check(job, undisturbed)


def test_a_job_whose_node_is_lost_goes_on(cluster: Cluster, undisturbed: Path) -> None:
    job = cluster.submit("lost_node")
    job.wait_for(13)
    lost = "node2" if "node[1-2]" in job.show("NodeList") else "node3"
    try:
        cluster.tool("kill-node", lost)
        assert job.end() == "COMPLETED", job.text()
    finally:
        cluster.tool("boot-node", lost)
    check(job, undisturbed)


def test_crashes_end_at_the_cap(cluster: Cluster) -> None:
    cluster.environ["MAX_CRASHES"] = "1"
    job = cluster.submit("crashes")
    del cluster.environ["MAX_CRASHES"]
    for restarts, step in ((0, 13), (1, 33)):
        job.wait_for(step, restarts=restarts)
        os.kill(job.tasks()[3], signal.SIGKILL)
    assert job.end() == "FAILED", job.text()
    assert "not requeued again (MAX_CRASHES)" in job.text()
    assert job.show("Restarts") == "1"


def test_a_crash_without_a_newer_checkpoint_is_final(cluster: Cluster) -> None:
    job = cluster.submit("vain")
    job.wait_for(2)
    os.kill(job.tasks()[3], signal.SIGKILL)
    assert job.end() == "FAILED", job.text()
    assert "no newer checkpoint" in job.text()


def test_a_finished_run_ends_at_once(cluster: Cluster, undisturbed: Path) -> None:
    began = (undisturbed / "metrics.jsonl").stat().st_mtime
    job = cluster.submit("undisturbed")
    assert job.end() == "COMPLETED", job.text()
    assert "is finished: 60 steps" in job.text()
    assert (undisturbed / "metrics.jsonl").stat().st_mtime == began


def test_no_requeue_is_kept(cluster: Cluster, undisturbed: Path) -> None:
    job = cluster.submit("kept", options=("--no-requeue", "--export=NONE,PYTHON"))
    job.wait_for(13)
    cluster.call("scancel", "--signal=USR1", job.number)
    assert job.end() == "FAILED", job.text()
    assert job.show("ExitCode") == "75:0"
    assert "submit it again to continue" in job.text()
    job = cluster.submit("kept")
    assert job.end() == "COMPLETED", job.text()
    check(job, undisturbed)


@pytest.mark.parametrize("first", ["slow", "fast"])
def test_a_mistake_is_printed_once_whichever_rank_is_first(
    cluster: Cluster, first: str, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    test = "=" if first == "slow" else "!="
    python.write_text(
        f'#!/bin/bash\n[ "$SLURM_PROCID" {test} 0 ] && sleep 3\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    usual, cluster.environ["PYTHON"] = cluster.environ["PYTHON"], str(python)
    job = cluster.submit(f"mistake_{first}", "model.num_layer=3")
    cluster.environ["PYTHON"] = usual
    assert job.end() == "FAILED", job.text()
    assert job.text().count("ConfigError: model has no key num_layer") == 1, job.text()
    assert job.show("ExitCode") == "2:0"


def test_every_script_would_be_accepted(cluster: Cluster) -> None:
    folder = cluster.folder / "big"
    environ = cluster.environ | {
        "SLURM_CLUSTER_DIR": str(folder),
        "SLURM_CLUSTER_PORT": "17417",
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    subprocess.run([TOOL, "start", "32"], env=environ, check=True, timeout=300)
    try:
        for script in sorted((ROOT / "launchers").glob("*.sh")):
            if script.name != "common.sh":
                sbatch = shutil.which("sbatch") or "sbatch"
                command = [sbatch, "--test-only", str(script)]
                done = subprocess.run(
                    command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, done.stderr
    finally:
        subprocess.run([TOOL, "stop"], env=environ, check=True, timeout=120)
