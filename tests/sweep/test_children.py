"""Command lines and surroundings of a sweep's processes."""

import sys
from pathlib import Path

import pytest

from glm_dist.sweep.children import (
    command_of,
    environment_of,
    last_error,
    visible_gpus,
    with_port,
)

POINT = ["train", "run.seed=1"]
PORT = 4711


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ("", f"{sys.executable} -m glm_dist"),
        ("srun -n 2", f"srun -n 2 {sys.executable} -m glm_dist"),
        ("/opt/torchrun --nproc-per-node 2", "/opt/torchrun --nproc-per-node 2 PORT -m glm_dist"),
        (
            "python -m torch.distributed.run --standalone",
            "python -m torch.distributed.run --standalone -m glm_dist",
        ),
        (
            "deepspeed --num_gpus 2",
            "deepspeed --num_gpus 2 PORT --no_local_rank --module glm_dist",
        ),
        (
            "deepspeed --master_port 7",
            "deepspeed --master_port 7 --no_local_rank --module glm_dist",
        ),
    ],
    ids=["none", "srun", "torchrun", "own rendezvous", "deepspeed", "own port"],
)
def test_launcher_starts_the_module_at_a_port_that_no_other_point_has(
    launcher: str, expected: str
) -> None:
    found = with_port(command_of(POINT, launcher), PORT)
    port = f"--master_port={PORT}"
    assert found == [*expected.replace("PORT", port).split(), *POINT]


def test_gpus_and_cores_are_shared_among_points_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    four = {"CUDA_VISIBLE_DEVICES": "3,2, GPU-a,0"}
    assert [environment_of(four, slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == [
        "3,2",
        "GPU-a,0",
    ]
    six = [environment_of(four, slot, 6)["CUDA_VISIBLE_DEVICES"] for slot in range(6)]
    assert six == ["3", "2", "GPU-a", "0", "3", "2"]
    assert environment_of(four, 0, 2)["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in environment_of(four | {"OMP_NUM_THREADS": "1"}, 0, 2)
    assert environment_of(four, 0, 1) == {}
    assert "CUDA_VISIBLE_DEVICES" not in environment_of({"CUDA_VISIBLE_DEVICES": "-1"}, 0, 2)


def test_gpus_are_counted_by_their_devices(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, devices=tmp_path) == ["0", "1"]


def test_reason_of_a_failure_is_its_last_error(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    assert last_error(output) == "no output"
    output.write_text("DataError: old\nstep 1\nConfigError: new\n  Set it.\nstopped\n")
    assert last_error(output) == "ConfigError: new"
    output.write_text("step 1\nKilled\n\n")
    assert last_error(output) == "Killed"
