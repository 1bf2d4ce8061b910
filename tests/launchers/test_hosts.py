"""Hosts with networks of their own, on this machine: every way to start on several, and cut cables.

Needs root, what test_slurm.py needs, and GLM_HOSTS_TOOL: a program that makes such hosts
(`start N`, `exec HOST COMMAND...`, `cut HOST`, `heal HOST`, `stop`), called host1, host2, ….
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from glm_dist.observe.metrics_file import read_records
from tests.launchers.slurm import OVERRIDES, STEPS, TOOL, Cluster, Job, check, started
from tests.train.jobs import ROOT
from tests.train.test_job import weights_of

HOSTS = os.environ.get("GLM_HOSTS_TOOL", "")
CONTROLLER = "host5"
TRAIN = ("train.py", "experiment=quickstart", "parallel=dp")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not TOOL or not HOSTS or os.getuid() != 0, reason="needs root and tools, see the module"
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Four hosts with ssh, and one more for SLURM's controller."""
    subprocess.run([HOSTS, "start", "5"], check=True, timeout=120)
    on = (HOSTS, "exec", CONTROLLER)
    try:
        with started(4, "17517", on=on, SLURM_CLUSTER_NETNS="1", SLURM_CLUSTER_SSH="1") as made:
            # Only the shell says where runs go.
            made.typed.remove(f"paths.runs={made.folder / 'runs'}")
            made.environ["GLM_RUNS"] = str(made.folder / "runs")
            made.environ["PATH"] = f"{Path(sys.executable).parent}:{made.environ['PATH']}"
            yield made
    finally:
        subprocess.run([HOSTS, "stop"], check=True, timeout=120)


def train(cluster: Cluster, name: str) -> list[str]:
    """The program and its overrides."""
    return [*TRAIN, *cluster.typed, *OVERRIDES, f"run.name={name}"]


def on_hosts(cluster: Cluster, commands: Sequence[Sequence[str]]) -> None:
    """Run a command on host1, one on host2, … at the same time."""
    running = [
        subprocess.Popen(
            [HOSTS, "exec", f"host{number}", *command],
            env=cluster.environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, command in enumerate(commands, start=1)
    ]
    for process in running:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-4000:]


@pytest.fixture(scope="module")
def alone(cluster: Cluster) -> Path:
    """The run folder of a job on one host."""
    torchrun = ["torchrun", "--nproc-per-node", "4"]
    on_hosts(cluster, [[*torchrun, *train(cluster, "alone")]])
    return cluster.folder / "runs/alone"


def same(cluster: Cluster, name: str, alone: Path) -> None:
    """The run ended with the weights of the one on one host."""
    expected, found = weights_of(alone, STEPS), weights_of(cluster.folder / "runs" / name, STEPS)
    assert found.keys() == expected.keys()
    assert [n for n in expected if not np.array_equal(found[n], expected[n])] == []


def test_torchrun_on_two_hosts(cluster: Cluster, alone: Path) -> None:
    on_hosts(
        cluster,
        [
            [
                *("torchrun", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "2"),
                *("--master-addr", "host1", "--master-port", "29500"),
                *train(cluster, "torchrun"),
            ]
            for node in (0, 1)
        ],
    )
    same(cluster, "torchrun", alone)


def test_deepspeed_without_ssh_on_two_hosts(cluster: Cluster, alone: Path) -> None:
    hostfile = cluster.folder / "hostfile"
    hostfile.write_text("host1 slots=2\nhost2 slots=2\n")
    on_hosts(
        cluster,
        [
            [
                *("deepspeed", "--no_ssh", "--node_rank", str(node), "--hostfile", str(hostfile)),
                *("--master_addr", "host1", *train(cluster, "no_ssh")),
            ]
            for node in (0, 1)
        ],
    )
    same(cluster, "no_ssh", alone)


def batch(cluster: Cluster, name: str, *lines: str) -> Job:
    """Submit a script for two nodes with two processes each."""
    script, log = cluster.folder / f"{name}.sh", cluster.folder / f"{name}.log"
    script.write_text("\n".join(("#!/usr/bin/env bash", "set -euo pipefail", *lines, "")))
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", f"--output={log}")
    said = cluster.call("sbatch", *options, str(script))
    return Job(cluster, said.split()[-1], log, cluster.folder / "runs" / name)


def test_deepspeed_over_ssh(cluster: Cluster, alone: Path) -> None:
    exports, hostfile = cluster.folder / "exports", cluster.folder / "listed"
    job = batch(
        cluster,
        "over_ssh",
        f"export DS_ENV_FILE={exports}",
        f"glm-dist hostfile > {hostfile}",
        f"glm-dist hostfile --exports > {exports}",
        " ".join(["deepspeed", "--hostfile", str(hostfile), *train(cluster, "over_ssh")]),
    )
    assert job.end() == "COMPLETED", job.text()
    same(cluster, "over_ssh", alone)


def test_deepspeed_starts_through_slurm(cluster: Cluster, alone: Path) -> None:
    exports, hostfile = cluster.folder / "exports", cluster.folder / "listed"
    launcher = ("--launcher", "slurm", "--no_ssh_check", "--hostfile", str(hostfile))
    job = batch(
        cluster,
        "through_slurm",
        f"export DS_ENV_FILE={exports}",
        f"glm-dist hostfile > {hostfile}",
        f"glm-dist hostfile --exports > {exports}",
        " ".join(["deepspeed", *launcher, *train(cluster, "through_slurm")]),
    )
    assert job.end() == "COMPLETED", job.text()
    same(cluster, "through_slurm", alone)


def test_a_job_goes_on_without_the_node_whose_cable_is_cut(cluster: Cluster) -> None:
    undisturbed = cluster.submit("undisturbed")  # with the batch script's number of threads
    assert undisturbed.end() == "COMPLETED", undisturbed.text()
    job = cluster.submit("cut", "watchdog.floor_seconds=30")
    job.wait_for(13)
    cut = "host2" if "node[1-2]" in job.show("NodeList") else "host3"
    try:
        subprocess.run([HOSTS, "cut", cut], check=True, timeout=30)
        assert job.end() == "COMPLETED", job.text()
        check(job, undisturbed.run)
    finally:
        subprocess.run([HOSTS, "heal", cut], check=True, timeout=30)
    saved = len(read_records(job.run / "metrics.jsonl"))
    deadline = time.monotonic() + 120
    while job.tasks():  # ranks on the node that was cut off
        assert time.monotonic() < deadline, job.text()
        time.sleep(1.0)
    check(job, undisturbed.run)
    assert len(read_records(job.run / "metrics.jsonl")) == saved
