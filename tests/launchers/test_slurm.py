"""The batch scripts on a real SLURM of virtual nodes, on this machine.

Needs root, SLURM from the distribution's packages, and GLM_SLURM_CLUSTER_TOOL: a program that
starts and stops such a cluster (`start N`, `stop`, `kill-node NAME`, `boot-node NAME`; its folder
is SLURM_CLUSTER_DIR, its first port SLURM_CLUSTER_PORT). With GLM_CONTAINER_IMAGE, a name of the
project's image, podman runs ranks as well.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchers.slurm import TOOL, Cluster, check, started
from tests.train.jobs import ROOT

IMAGE = os.environ.get("GLM_CONTAINER_IMAGE", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not TOOL or os.getuid() != 0, reason="needs root and GLM_SLURM_CLUSTER_TOOL, see the module"
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes."""
    with started(3, "17317") as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Path:
    """The run folder of a job that nobody touches."""
    job = cluster.submit("undisturbed")
    assert job.end() == "COMPLETED", job.text()
    return job.run


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


def test_a_mute_wandb_server_holds_no_job(cluster: Cluster, undisturbed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and never answers
        cluster.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{mute.getsockname()[1]}"
        cluster.environ["WANDB_API_KEY"] = "0" * 40
        began = time.monotonic()
        job = cluster.submit("mute_wandb", "observe=wandb", "observe.wandb_mode=online")
        del cluster.environ["WANDB_BASE_URL"], cluster.environ["WANDB_API_KEY"]
        assert job.end() == "COMPLETED", job.text()
    assert time.monotonic() - began < 240, job.text()
    check(job, undisturbed, attempts=1)


@pytest.mark.skipif(not IMAGE, reason="needs GLM_CONTAINER_IMAGE, which podman knows")
def test_ranks_in_containers_train_the_same(cluster: Cluster, undisturbed: Path) -> None:
    python = cluster.environ.pop("PYTHON")
    cluster.environ |= {"CONTAINER_IMAGE": IMAGE, "CONTAINER_RUNTIME": "podman"}
    job = cluster.submit("containers")
    del cluster.environ["CONTAINER_IMAGE"], cluster.environ["CONTAINER_RUNTIME"]
    cluster.environ["PYTHON"] = python
    job.wait_for(13)
    cluster.call("scancel", "--signal=USR1", job.number)
    assert job.end() == "COMPLETED", job.text()
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
    job = cluster.submit("kept", options=("--no-requeue", "--export=NONE,PYTHON,DS_ACCELERATOR"))
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
