"""A snapshot is a copy: later changes do not reach it, and its memory serves every save."""

import math
import socket
from pathlib import Path

import pytest
import torch

from glm_dist.checkpoint import snapshot as snapshot_module
from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.host_memory import available_bytes
from glm_dist.checkpoint.snapshot import Snapshot, check_host_memory
from glm_dist.errors import CheckpointError
from tests.checkpoint.layouts import data, global_tensors, parts
from tests.messages import Says

CPU = torch.device("cpu")


@pytest.mark.parametrize("layout", ["one", "columns", "flat"])
def test_later_changes_do_not_reach_the_copy(layout: str) -> None:
    tensors = parts(layout, 0, global_tensors())
    before = {name: data(part) for name, part in tensors.items()}
    snapshot = Snapshot(CPU)

    copies = snapshot.take(tensors)
    for part in tensors.values():
        for box in part.boxes if isinstance(part, Fragment) else [part]:
            box.add_(1000)

    assert {name: data(copy) for name, copy in copies.items()} == before
    assert {name: copy.shape for name, copy in copies.items()} == {
        name: part.shape for name, part in tensors.items()
    }


def test_every_save_uses_the_same_memory_and_each_box_is_a_whole_storage() -> None:
    tensors = {"model.w": torch.rand(3, 5), "model.b": torch.rand(7).bfloat16()}
    snapshot = Snapshot(CPU)
    snapshot.reserve(tensors)

    first, second = (
        [box for copy in snapshot.take(tensors).values() for box in copy.boxes] for _ in range(2)
    )

    assert [box.data_ptr() for box in first] == [box.data_ptr() for box in second]
    assert [box.untyped_storage().nbytes() for box in first] == [3 * 5 * 4, 7 * 2]
    assert snapshot.num_bytes == 64 + 64  # each rounded up to a multiple of 64


def test_what_another_rank_saves_is_not_copied() -> None:
    tied = Fragment(torch.rand(4, 2), global_shape=(4, 2), is_saved=False)
    snapshot = Snapshot(CPU)

    copy = snapshot.take({"model.tied": tied})["model.tied"]

    assert (snapshot.num_bytes, copy.shape, copy.is_saved, copy.boxes) == (0, (4, 2), False, [])


def test_too_little_memory_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    tensors = {"model.w": torch.zeros(2**20)}
    monkeypatch.setattr(snapshot_module.torch, "zeros", refuse)
    with pytest.raises(CheckpointError, match="GiB of host memory") as caught:
        Snapshot(CPU).reserve(tensors)
    assert caught.value.fix == "checkpoint.background=false"


def test_ranks_of_one_host_share_its_memory(says: Says) -> None:
    here = socket.gethostname()
    needs = [(here, 3 * 2**30), ("another", 100 * 2**30), (here, 3 * 2**30)]
    check_host_memory(needs, 6.0 * 2**30)
    with pytest.raises(CheckpointError) as caught:
        check_host_memory(needs, 5.5 * 2**30)
    says(caught.value)


@pytest.mark.parametrize(
    ("line", "folder", "files", "left"),
    [
        ("0::/job/step", "job", {"memory.max": "7000", "memory.current": "5000"}, 2300),
        ("0::/job/step", "job/step", {"memory.max": "max", "memory.current": "5000"}, 8 * 1024),
        (
            "4:cpu,memory:/slurm",
            "memory/slurm",
            {"memory.limit_in_bytes": "6000", "memory.usage_in_bytes": "5500"},
            900,
        ),
        ("4:cpu:/slurm", "memory/slurm", {"memory.limit_in_bytes": "1"}, 8 * 1024),
    ],
    ids=["above", "no limit", "version 1", "another controller"],
)
def test_the_limit_of_a_control_group_counts_without_cached_files(
    tmp_path: Path, line: str, folder: str, files: dict[str, str], left: int
) -> None:
    proc, group = tmp_path / "proc", tmp_path / "cgroups" / folder
    (proc / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 16 kB\nMemAvailable:   8 kB\n")
    (proc / "self" / "cgroup").write_text(f"{line}\n")
    for name, content in files.items():
        (group / name).write_text(f"{content}\n")
    (group / "memory.stat").write_text("anon 1\nfile 300\ntotal_cache 400\n")
    assert available_bytes(proc, tmp_path / "cgroups") == left
    assert available_bytes(tmp_path / "nothing", tmp_path) == math.inf
