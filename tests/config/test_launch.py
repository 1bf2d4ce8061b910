from collections.abc import Mapping
from pathlib import Path

import pytest

from glm_dist.config.launch import (
    LaunchEnvironment,
    accelerator_is_visible,
    first_host,
    hide_gpus_if_asked,
    read_launch_environment,
    without_local_rank,
)
from glm_dist.errors import LaunchError
from tests.messages import Says

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "none",
}
DEEPSPEED = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
# What SLURM 22.05 really sets in a batch script of 2 nodes x 2 tasks, and in its third task.
BATCH_SHELL = {
    "ENVIRONMENT": "BATCH",
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
SRUN_TASK = {
    "ENVIRONMENT": "BATCH",
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_plain_python_is_a_job_of_one_process() -> None:
    assert read_launch_environment({"HOME": "/root"}) == LaunchEnvironment(
        0, 1, 0, 1, "127.0.0.1", 0, "python"
    )


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, LaunchEnvironment(5, 8, 1, 4, "node1", 29400, "torchrun")),
        (DEEPSPEED, LaunchEnvironment(1, 2, 1, 2, "127.0.0.1", 29500, "deepspeed")),
        # Port: 20000 + (41 * 7 + step 0) mod 10000.
        (SRUN_TASK, LaunchEnvironment(2, 4, 0, 2, "node1", 20287, "srun")),
        (
            SRUN_TASK | {"MASTER_ADDR": "head", "MASTER_PORT": "1234"},
            LaunchEnvironment(2, 4, 0, 2, "head", 1234, "srun"),
        ),
        (
            # A container or a test that sets only the essentials.
            {
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "2",
                "SLURM_LOCALID": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "29511",
            },
            LaunchEnvironment(1, 2, 1, 2, "127.0.0.1", 29511, "srun"),
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "1"},
            LaunchEnvironment(0, 1, 0, 1, "127.0.0.1", 0, "environment"),
        ),
        # torchrun inside an srun step: its own variables are the nearer ones.
        (SRUN_TASK | TORCHRUN, LaunchEnvironment(5, 8, 1, 4, "node1", 29400, "torchrun")),
        # An interactive shell that SLURM runs as a step of its own (LaunchParameters).
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290", "SLURM_JOB_ID": "7"},
            LaunchEnvironment(0, 1, 0, 1, "127.0.0.1", 0, "python"),
        ),
        # A batch script that asked for one task may run plain python.
        (
            BATCH_SHELL | {"SLURM_NTASKS": "1"},
            LaunchEnvironment(0, 1, 0, 1, "127.0.0.1", 0, "python"),
        ),
    ],
    ids=[
        "torchrun",
        "deepspeed",
        "srun",
        "srun with an exported master",
        "essentials of srun",
        "one process",
        "torchrun inside srun",
        "interactive step",
        "batch script of one task",
    ],
)
def test_launcher_is_understood(environ: Mapping[str, str], expected: LaunchEnvironment) -> None:
    assert read_launch_environment(environ) == expected


def test_tasks_of_an_uneven_step_are_counted_per_node() -> None:
    # 3 nodes of 8 tasks and one of 2: node 3 has 2, node 1 has 8.
    uneven = SRUN_TASK | {
        "SLURM_STEP_TASKS_PER_NODE": "8(x3),2",
        "SLURM_STEP_NUM_TASKS": "26",
        "SLURM_NTASKS": "26",
    }
    last = read_launch_environment(uneven | {"SLURM_NODEID": "3", "SLURM_PROCID": "25"})
    second = read_launch_environment(uneven | {"SLURM_NODEID": "1", "SLURM_PROCID": "8"})
    assert (last.local_world_size, second.local_world_size) == (2, 8)


def test_nodes_by_the_billion_are_not_listed() -> None:
    many = SRUN_TASK | {"SLURM_STEP_TASKS_PER_NODE": "2(x999999999999)"}
    assert read_launch_environment(many).local_world_size == 2


def test_steps_of_a_job_get_different_ports() -> None:
    first = read_launch_environment(SRUN_TASK)
    second = read_launch_environment(SRUN_TASK | {"SLURM_STEP_ID": "1"})
    assert first.master_port != second.master_port


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        (
            {"RANK": "0"},
            "WORLD_SIZE",
        ),
        (
            {"WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            "RANK",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"},
            "MASTER_ADDR",
        ),
        (
            TORCHRUN | {"RANK": "8"},
            "RANK",
        ),
        (
            TORCHRUN | {"LOCAL_RANK": "4"},
            "LOCAL_RANK",
        ),
        (
            TORCHRUN | {"LOCAL_WORLD_SIZE": "9"},
            "LOCAL_WORLD_SIZE",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "1"},
            "LOCAL_RANK",
        ),
        (
            SRUN_TASK | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)"},
            "SLURM_STEP_TASKS_PER_NODE",
        ),
        (
            TORCHRUN | {"RANK": "first"},
            "RANK",
        ),
        (
            TORCHRUN | {"RANK": "5" * 5000},
            "RANK",
        ),
        (
            TORCHRUN | {"WORLD_SIZE": "0"},
            "WORLD_SIZE",
        ),
        (
            TORCHRUN | {"MASTER_PORT": "99999"},
            "MASTER_PORT",
        ),
        (
            BATCH_SHELL,
            "SLURM_NTASKS",
        ),
        (
            BATCH_SHELL | {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
            "SLURM_NTASKS",
        ),
        (
            SRUN_TASK | {"SLURM_PROCID": "4"},
            "SLURM_PROCID",
        ),
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"},
            "MASTER_ADDR",
        ),
        (
            {
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "2",
                "SLURM_LOCALID": "1",
                "MASTER_ADDR": "node1",
            },
            "MASTER_PORT",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            "OMPI_COMM_WORLD_SIZE",
        ),
    ],
    ids=[
        "rank alone",
        "no rank",
        "no master",
        "rank beyond the world",
        "local rank beyond the node",
        "node beyond the world",
        "local rank beyond the world",
        "tasks of a node beyond the step",
        "rank is no number",
        "rank of thousands of digits",
        "empty world",
        "port too large",
        "plain python in a batch script",
        "plain python in a batch script that exported a master",
        "task beyond the step",
        "srun without a node list",
        "srun without a job id",
        "mpirun",
    ],
)
def test_contradiction_names_the_variable(environ: Mapping[str, str], key: str, says: Says) -> None:
    with pytest.raises(LaunchError) as caught:
        read_launch_environment(environ)
    assert caught.value.key == key
    says(caught.value)


@pytest.mark.parametrize(
    "spelled",
    [["--local_rank=3"], ["--local-rank=3"], ["--local_rank", "3"], ["--local-rank", "3"]],
    ids=" ".join,
)
def test_local_rank_is_removed_in_every_spelling(spelled: list[str]) -> None:
    typed = ["experiment=glm_large", *spelled, "run.steps=5"]
    assert without_local_rank(typed) == ["experiment=glm_large", "run.steps=5"]


def test_removing_the_local_rank_keeps_an_override_that_follows_it() -> None:
    # Some launchers pass the flag without a value.
    assert without_local_rank(["--local_rank", "run.steps=5"]) == ["run.steps=5"]


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node[1-2]", "node1"),
        ("gpu[003,007-010],cpu1", "gpu003"),
        ("a1,b[2-3]", "a1"),
        ("rack[1-2]n[05-08]", "rack1n05"),
        ("", ""),
    ],
)
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("files", "environ", "visible"),
    [
        (["null", "nvidia0", "nvidiactl"], {}, True),
        (["null", "nvidiactl"], {}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "0"}, True),
        (["kfd"], {}, True),
    ],
    ids=["one GPU", "driver without GPU", "hidden", "hidden by -1", "chosen", "AMD"],
)
def test_gpu_is_seen_without_torch(
    files: list[str], environ: dict[str, str], visible: bool, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert accelerator_is_visible(environ, devices=tmp_path) is visible


def test_deepspeeds_variable_hides_gpus_that_its_launcher_showed(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    asked = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"}
    not_asked = {"CUDA_VISIBLE_DEVICES": "0,1"}

    hide_gpus_if_asked(asked)
    hide_gpus_if_asked(not_asked)

    assert not accelerator_is_visible(asked, devices=tmp_path)
    assert accelerator_is_visible(not_asked, devices=tmp_path)
