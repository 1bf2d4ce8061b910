"""Variables that must agree, threads that are divided, and variables that deepspeed drops."""

import os
from pathlib import Path

import pytest

from glm_dist.config.launch import LaunchEnvironment
from glm_dist.config.surroundings import refuse_dropped, variables, with_threads
from glm_dist.errors import LaunchError
from tests.messages import Says


def launch(launcher: str = "deepspeed", *, local: int = 2, world: int = 4) -> LaunchEnvironment:
    return LaunchEnvironment(0, world, 0, local, "node1", 29500, launcher)


def test_variables_of_results_and_places_are_compared() -> None:
    environ = {
        "GLM_RUNS": "/r",
        "GLM_DATA": "/nvme",  # a host may have its own copy
        "GLM_RUN_FOLDER_FILE": "/x",
        "OMP_NUM_THREADS": "4",
        "NCCL_SOCKET_IFNAME": "ib0",  # may differ
        "PATH": "/bin",
    }
    assert variables(environ) == {"GLM_RUNS": "/r", "GLM_DATA": "set", "OMP_NUM_THREADS": "4"}


@pytest.mark.parametrize(
    ("launcher", "environ", "threads"),
    [
        ("torchrun", {}, 6),  # 12 cores, 2 processes
        ("srun", {"SLURM_CPUS_ON_NODE": "12"}, 6),
        ("srun", {"SLURM_CPUS_ON_NODE": "24"}, 12),  # bound: these 12 are the task's own
        ("srun", {"SLURM_CPUS_PER_TASK": "3"}, 3),
        ("torchrun", {"OMP_NUM_THREADS": "5"}, None),
    ],
)
def test_cores_are_divided_among_the_processes_of_a_host(
    launcher: str,
    environ: dict[str, str],
    threads: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    assert with_threads(launch(launcher), environ).threads == threads
    assert environ["OMP_NUM_THREADS"] == str(threads or 5)
    single: dict[str, str] = {}
    assert with_threads(launch(local=1, world=1), single).threads is None
    assert single == {}


def test_what_deepspeed_has_dropped_is_found_where_it_was_started(
    tmp_path: Path, says: Says
) -> None:
    def process(pid: int, command: str, environ: str) -> None:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_text(command.replace(" ", "\0"))
        (tmp_path / str(pid) / "environ").write_text(environ)

    sent = "-m deepspeed.launcher.launch --master_addr=node1 --master_port="
    process(10, f"pdsh -w node1,node2 python {sent}29500 train.py", "GLM_RUNS=/r\0PATH=/x\0")
    process(11, f"pdsh -w node1,node2 python {sent}29501 train.py", "GLM_OTHER=/another job\0")
    process(12, f"python {sent}29500 train.py", "PATH=/bin\0")
    process(13, "vim train.py", "GLM_EDITOR=1\0")
    with pytest.raises(LaunchError) as caught:
        refuse_dropped(launch(), {}, processes=tmp_path)
    says(caught.value)
    refuse_dropped(launch(), {"GLM_RUNS": "/r"}, processes=tmp_path)
    refuse_dropped(launch(local=4), {}, processes=tmp_path)
