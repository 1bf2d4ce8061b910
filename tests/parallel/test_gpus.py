"""A job uses the GPUs that were reserved for it, one for each process."""

import os
from pathlib import Path

import pytest
import torch

from glm_dist.cli.main import main_train
from glm_dist.config.launch import LaunchEnvironment
from glm_dist.errors import LaunchError
from glm_dist.parallel import gpus
from glm_dist.parallel.gpus import check_gpus, refuse_shared_gpus
from tests.environment import CPU_ONLY
from tests.messages import Says
from tests.ranks import run_programs, run_ranks
from tests.train.jobs import make_files, rank_environments

ALONE = LaunchEnvironment(0, 1, 0, 1, "127.0.0.1", 0, "python")
ONE_HOST = LaunchEnvironment(3, 8, 3, 8, "127.0.0.1", 29500, "torchrun")
HOSTS = LaunchEnvironment(9, 16, 1, 8, "node1", 29500, "torchrun")
SLURM = {"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
CUDA = "12.8"


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """Device files of a host with two GPUs."""
    folder = tmp_path / "dev"
    folder.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "null"):
        (folder / name).touch()
    return folder


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """What NVIDIA's driver says of itself."""
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n")
    return file


@pytest.mark.parametrize(
    ("case", "launch", "environ", "cuda", "key"),
    [
        ("built for CPUs", HOSTS, SLURM, None, "SLURM_GPUS_ON_NODE"),
        ("alone under SLURM", ALONE, SLURM, None, "SLURM_GPUS_ON_NODE"),
        ("old driver", HOSTS, {}, CUDA, "GPUs"),
        ("no devices", HOSTS, SLURM, CUDA, "SLURM_GPUS_ON_NODE"),
    ],
)
def test_a_job_that_would_leave_its_gpus_idle_is_refused(
    case: str,
    launch: LaunchEnvironment,
    environ: dict[str, str],
    cuda: str | None,
    key: str,
    devices: Path,
    driver: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: Says,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    monkeypatch.chdir(tmp_path)
    folder = Path("dev")
    if case == "no devices":
        folder = Path("empty")
        folder.mkdir()
    with pytest.raises(LaunchError) as raised:
        check_gpus(launch, environ, devices=folder, driver=driver)
    assert raised.value.key == key
    says(str(raised.value))


@pytest.mark.parametrize("launch", [ALONE, ONE_HOST])
def test_one_machine_with_a_gpu_that_torch_cannot_use_trains_with_a_warning(
    launch: LaunchEnvironment, devices: Path, driver: Path
) -> None:
    warning = check_gpus(launch, {}, devices=devices, driver=driver)
    assert warning is not None
    assert "finds none" in warning


@pytest.mark.parametrize(
    "environ",
    [
        {"CUDA_VISIBLE_DEVICES": ""},  # also what DS_ACCELERATOR=cpu becomes
        SLURM | {"CUDA_VISIBLE_DEVICES": "NoDevFiles"},  # a step without GPUs
    ],
)
def test_gpus_that_are_hidden_are_not_missed(
    environ: dict[str, str], devices: Path, driver: Path
) -> None:
    assert check_gpus(HOSTS, environ, devices=devices, driver=driver) is None


def test_hosts_without_gpus_train_on_their_cpus(tmp_path: Path, driver: Path) -> None:
    environ = {"SLURM_GPUS_ON_NODE": "0", "CUDA_VISIBLE_DEVICES": "0,1"}  # by deepspeed
    assert check_gpus(HOSTS, environ, devices=tmp_path, driver=driver) is None


def test_gpus_that_torch_can_use_are_used(
    devices: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check_gpus(HOSTS, SLURM, devices=devices, driver=driver) is None


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch may find a GPU")
def test_the_launch_says_it_once_before_there_is_a_run_folder(tmp_path: Path) -> None:
    program = ["train.py", *make_files(tmp_path), "parallel=dp2", "run.name=idle"]
    environments = [
        {name: text for name, text in environ.items() if name not in CPU_ONLY} | SLURM
        for environ in rank_environments(2)
    ]
    ended = run_programs(main_train, program, environments)
    said = "".join(rank.stderr for rank in ended)
    assert [rank.returncode for rank in ended] == [2, 2]
    assert said.count("LaunchError: SLURM has reserved GPUs on this host") == 1, said
    assert not (tmp_path / "runs").exists()


def use_gpus(hosts: list[str], used: list[str], ids: list[str]) -> str:
    """Compare ranks on these hosts and GPUs; return the error, or what it was not."""
    rank = int(os.environ["RANK"])
    gpus.socket.gethostname = lambda: hosts[rank]  # type: ignore[attr-defined]
    gpus.gpu_id = lambda device: used[rank]
    environ = {"NCCL_HOSTID": ids[rank]} if ids else {}
    device = torch.device("cpu") if used[rank] == "none" else torch.device("cuda", 0)
    try:
        refuse_shared_gpus(device, environ)
    except LaunchError as error:
        return str(error)
    return "joined"


TWO_HOSTS = ["node1", "node1", "node2", "node2"]


def test_two_ranks_on_a_gpu_are_refused_on_every_rank(says: Says) -> None:
    said = run_ranks(use_gpus, TWO_HOSTS, ["GPU-1", "GPU-2", "GPU-3", "GPU-3"], [], world_size=4)
    assert len(set(said)) == 1
    says(said[0])


@pytest.mark.parametrize(
    ("hosts", "used", "ids"),
    [
        # Containers of two hosts may number their GPUs alike, as virtual machines do.
        (TWO_HOSTS, ["GPU-1", "GPU-2", "GPU-1", "GPU-2"], []),
        (TWO_HOSTS, ["none"] * 4, []),
        # What several ranks on a GPU need to be joined by NCCL all the same.
        (["node1"] * 4, ["GPU-1"] * 4, ["h0", "h1", "h2", "h3"]),
    ],
)
def test_ranks_with_a_device_each_are_joined(
    hosts: list[str], used: list[str], ids: list[str]
) -> None:
    assert run_ranks(use_gpus, hosts, used, ids, world_size=4) == ["joined"] * 4
