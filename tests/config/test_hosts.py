"""Lists of hosts, the hostfile, and refusals of jobs smaller than their allocation."""

from collections.abc import Mapping

import pytest

from glm_dist.cli.main import main
from glm_dist.config.hosts import expand_hosts, slots_of_job
from glm_dist.config.launch import read_launch_environment
from glm_dist.errors import LaunchError
from tests.messages import Says


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("gpu1", ["gpu1"]),
        ("gpu[003,008-010],cpu1", ["gpu003", "gpu008", "gpu009", "gpu010", "cpu1"]),
        ("r[1-2]n[07-08]-ib", ["r1n07-ib", "r1n08-ib", "r2n07-ib", "r2n08-ib"]),
        ("a, b  c", ["a", "b", "c"]),
    ],
)
def test_a_compressed_list_is_expanded(nodes: str, expected: list[str]) -> None:
    assert expand_hosts(nodes) == expected


@pytest.mark.parametrize("nodes", ["", "gpu[1-", "gpu[a-b]", "gpu[9-1]", "gpu]1"])
def test_what_is_no_list_is_refused(nodes: str) -> None:
    with pytest.raises(LaunchError, match="is no list of hosts"):
        expand_hosts(nodes)


@pytest.mark.parametrize(
    ("environ", "hosts", "slots"),
    [
        ({"SLURM_TASKS_PER_NODE": "8(x3),2"}, 4, [8, 8, 8, 2]),
        ({"SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "4"}, 2, [4, 4]),
        ({"SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_GPUS_ON_NODE": "4"}, 2, [2, 2]),
        ({}, 2, []),
    ],
)
def test_slots_are_tasks_or_gpus(environ: dict[str, str], hosts: int, slots: list[int]) -> None:
    assert slots_of_job(environ, hosts) == slots


def test_the_hostfile_of_a_job_and_of_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[07-08]")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "8(x2)")
    assert main(["hostfile"]) == 0
    assert capsys.readouterr().out == "node07 slots=8\nnode08 slots=8\n"
    assert main(["hostfile", "a,b", "--slots", "2"]) == 0
    assert capsys.readouterr().out == "a slots=2\nb slots=2\n"
    assert main(["hostfile", "a"]) == 2
    says(capsys.readouterr().err)
    monkeypatch.delenv("SLURM_JOB_NODELIST")
    assert main(["hostfile"]) == 2
    says(capsys.readouterr().err)


def test_exports_are_what_deepspeed_drops_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM_RUNS", "/r")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert main(["hostfile", "--exports"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "GLM_RUNS=/r" in lines
    assert "TOKENIZERS_PARALLELISM=false" in lines
    assert not [line for line in lines if "secret" in line or line.startswith("PATH=")]


ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
EIGHT = ALONE | {"WORLD_SIZE": "8", "LOCAL_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
JOB = {"SLURM_JOB_ID": "4", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    "environ",
    [
        ALONE | JOB,
        EIGHT | JOB,
        {"SLURM_NNODES": "2"},
        ALONE | {"SLURM_NTASKS": "8"},
        ALONE | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
    ],
    ids=["one of two nodes", "all GPUs of one node", "python", "one of eight tasks", "each task"],
)
def test_a_job_smaller_than_its_allocation_is_refused(
    environ: Mapping[str, str], says: Says
) -> None:
    with pytest.raises(LaunchError) as caught:
        read_launch_environment(environ)
    says(caught.value)
    read_launch_environment(environ, trains=False)


@pytest.mark.parametrize(
    "environ",
    [
        # srun -N 1 -n 1 in front says that it is meant.
        EIGHT | JOB | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        EIGHT | JOB | {"WORLD_SIZE": "16"},
        EIGHT | {"SLURM_NTASKS": "8"},
        ALONE,
    ],
    ids=["a step of one task", "both nodes", "all tasks", "no SLURM"],
)
def test_a_job_of_the_size_that_is_meant_starts(environ: Mapping[str, str]) -> None:
    read_launch_environment(environ)
