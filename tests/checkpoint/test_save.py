"""A save that is interrupted or fails costs nothing but itself, on one rank and on several."""

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import glm_dist.checkpoint.save as save_module
from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.load import find_checkpoint, load_tensors, read_checkpoint
from glm_dist.checkpoint.save import check_shared, save_checkpoint
from glm_dist.errors import CheckpointError
from glm_dist.parallel.errors import RankFailure
from tests.ranks import exit_codes, run_ranks

PHASES = {
    "staged": "_check_is_shared",
    "tensors_written": "write_tensors",
    "verified": "_check_written",
    "listed": "_write_manifest",
    "published": "publish",
    "retired": "retire",
}
"""Functions of a save with which a phase ends."""


def save(
    directory: Path,
    step: int,
    *,
    keep_last: int = 10,
    tensors: dict[str, torch.Tensor] | None = None,
) -> Path:
    return save_checkpoint(
        directory,
        step=step,
        tensors=tensors if tensors is not None else {"model.w": torch.full((4, 3), float(step))},
        extra={},
        layout={"dp": 1},
        keep_last=keep_last,
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def newest_step(directory: Path) -> int:
    info = find_checkpoint(directory)
    assert info is not None
    return info.manifest.step


def die_after(phase: str) -> None:
    """Make this process end as `kill -9` does when a phase of its next save has ended."""
    kept = getattr(save_module, PHASES[phase])

    def last(*args: object, **options: object) -> None:
        kept(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(save_module, PHASES[phase], last)


def in_child(action: Callable[..., object], *args: object) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=action, args=args)
    child.start()
    child.join(60)
    return child.exitcode


def killed_save(directory: Path, step: int, phase: str) -> None:
    die_after(phase)
    save(directory, step, keep_last=1)


@pytest.mark.parametrize("phase", PHASES)
def test_a_save_killed_at_any_phase_leaves_a_valid_checkpoint_and_no_obstacle(
    tmp_path: Path, phase: str
) -> None:
    save(tmp_path, 1)
    assert in_child(killed_save, tmp_path, 2, phase) == -signal.SIGKILL
    assert newest_step(tmp_path) == (2 if phase in ("published", "retired") else 1)
    save(tmp_path, 3, keep_last=2)
    assert newest_step(tmp_path) == 3
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("phase", PHASES)
def test_saving_a_step_again_never_loses_the_first_save(tmp_path: Path, phase: str) -> None:
    save(tmp_path, 2)
    assert in_child(killed_save, tmp_path, 2, phase) == -signal.SIGKILL
    assert newest_step(tmp_path) == 2


def save_until_killed(directory: Path, first: int, sender: Connection) -> None:
    for step in range(first, first + 1000):
        save(directory, step, keep_last=1, tensors={"model.w": torch.zeros(200, 200)})
        sender.send(step)


def test_saves_killed_at_any_moment_leave_the_last_one_that_was_reported(tmp_path: Path) -> None:
    rng = random.Random(0)
    reported = 0
    for _ in range(15):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=save_until_killed, args=(tmp_path, reported + 1, sender)
        )
        child.start()
        time.sleep(rng.uniform(0.02, 0.3))
        child.kill()
        child.join()
        sender.close()
        with contextlib.suppress(EOFError):
            while True:
                reported = receiver.recv()
        if reported:
            reported_or_next = newest_step(tmp_path)
            assert reported_or_next in (reported, reported + 1)
            reported = reported_or_next
    assert reported > 0


def test_the_newest_checkpoints_are_kept_and_older_ones_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep_last=2)
    assert names(tmp_path) == ["step_0000003", "step_0000004"]


def test_a_folder_replaces_the_one_of_the_same_step(tmp_path: Path) -> None:
    save(tmp_path, 1, tensors={"model.w": torch.tensor([1.0])})
    save(tmp_path, 1, tensors={"model.w": torch.tensor([2.0])})
    assert names(tmp_path) == ["step_0000001"]
    found = torch.zeros(1)
    load_tensors(read_checkpoint(tmp_path / "step_0000001"), {"model.w": found})
    assert found.item() == 2.0


def test_elements_that_no_rank_holds_are_refused(tmp_path: Path) -> None:
    part = Fragment(torch.zeros(5), global_shape=(4, 3), local_shape=(4, 3), start=0)
    copy = Fragment(torch.zeros(2), global_shape=(2,), is_saved=False)
    problems = "model.w has 12 elements, ranks hold 5; model.tied has 2 elements, ranks hold 0"
    with pytest.raises(RuntimeError, match=problems):
        save(tmp_path, 1, tensors={"model.w": part, "model.tied": copy})
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="File exists") as caught:
        save(tmp_path / "checkpoints", 1)
    assert str(tmp_path / "checkpoints") in str(caught.value)


def failure_of(action: Callable[[], object]) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        action()
    return caught.value


def bug_of(action: Callable[[], object]) -> str:
    """Return the error raised when the ranks describe their tensors inconsistently."""
    with pytest.raises((RuntimeError, RankFailure)) as caught:
        action()
    return str(caught.value)


def check_one_rank_out_of_space_fails_on_all(folder: str) -> tuple[str, str, int]:
    """A file size limit on rank 1 gives the system's own error in the middle of a file."""
    directory = Path(folder)
    rank = dist.get_rank()
    large = torch.zeros(2, 100_000)
    tensors: dict[str, torch.Tensor] = {
        "model.w": Fragment(large[rank : rank + 1], global_shape=(2, 100_000), offset=(rank, 0))
    }
    save(directory, 1, tensors=tensors)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    error = failure_of(lambda: save(directory, 2, tensors=tensors))
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    dist.barrier()
    left = len(names(directory))
    assert newest_step(directory) == 1
    save(directory, 3, tensors=tensors)
    assert newest_step(directory) == 3
    return str(error), error.fix, left


def check_other_failures_reach_all_ranks(folder: str) -> list[str]:
    rank = dist.get_rank()
    directory = Path(folder)
    overlapping = Fragment(torch.zeros(2 + rank), global_shape=(3,), local_shape=(3,))
    return [
        bug_of(lambda: save(directory, 1, tensors={"model.w": overlapping})),
        bug_of(lambda: save(directory, 1, tensors={"model.w": torch.zeros(2 + rank)})),
        str(failure_of(lambda: save(directory / "file" / "checkpoints", 1))),
    ]


def test_a_full_disk_on_one_rank_is_one_error_on_all_and_spares_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    first, second = run_ranks(check_one_rank_out_of_space_fails_on_all, str(tmp_path), world_size=2)
    assert first == second
    found, fix, left = first
    assert "could not write tensors: File too large" in found
    assert "ulimit -f" in fix
    assert left == 1  # step 1 alone: the failed save gave its space back


def test_what_fails_on_one_rank_fails_on_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for messages in run_ranks(check_other_failures_reach_all_ranks, str(tmp_path), world_size=2):
        overlap, shapes, path = messages
        assert "model.w is split in different ways at (0,)" in overlap
        assert "model.w is (2,) on one rank, (3,) on another" in shapes
        assert path.startswith(
            f"{tmp_path}/file/checkpoints/step_0000001: could not create a folder"
        )
        assert "Not a directory" in path


def check_disks(folders: list[str]) -> str:
    """Return the error raised when ranks, like hosts, see different folders at the run's path."""
    try:
        check_shared(Path(folders[dist.get_rank()]))
    except CheckpointError as error:
        return str(error)
    return "shared"


def test_a_run_folder_on_each_hosts_own_disk_is_refused_before_training(tmp_path: Path) -> None:
    hosts = [str(tmp_path / name) for name in ("one", "other")]
    for host in hosts:
        Path(host).mkdir()

    assert run_ranks(check_disks, [hosts[0]] * 2, world_size=2) == ["shared"] * 2
    first, second = run_ranks(check_disks, hosts, world_size=2)

    assert first == second
    assert "is not one folder: at least two hosts have their own" in first
    assert "Set paths.runs to a shared file system" in first
    assert not any(any(Path(host).iterdir()) for host in hosts)


def save_and_kill_the_second(folder: str) -> None:
    save(Path(folder), 1)
    if dist.get_rank() == 1:
        die_after("tensors_written")
    save(Path(folder), 2)


def test_a_rank_killed_while_saving_ends_the_others_and_spares_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    codes = exit_codes(save_and_kill_the_second, str(tmp_path), world_size=2, timeout=120)

    assert codes == [1, -signal.SIGKILL]
    assert newest_step(tmp_path) == 1
