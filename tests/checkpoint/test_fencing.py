"""A save publishes nothing in a folder that belongs to another job or is gone."""

import errno
import fcntl
import shutil
from pathlib import Path

import pytest
import torch

import glm_dist.checkpoint.save as save_module
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.errors import CheckpointError
from glm_dist.observe.run_folder import RunFolder
from tests.observe.test_fence import start


def save(opened: RunFolder, step: int) -> Path:
    return save_checkpoint(
        opened.path / "checkpoints",
        step=step,
        tensors={"model.w": torch.ones(2)},
        extra={},
        layout={},
        keep_last=2,
        upkeep=Upkeep(fence=opened.fence),
    )


def names(opened: RunFolder) -> list[str]:
    return sorted(path.name for path in (opened.path / "checkpoints").iterdir())


def test_a_superseded_job_replaces_and_removes_nothing(tmp_path: Path) -> None:
    first = start(tmp_path / "run")
    for step in (1, 2):
        save(first, step)
    (tmp_path / "run" / "lock").unlink()
    second = start(tmp_path / "run")
    before = (save(second, 3) / "manifest.json").read_bytes()

    with pytest.raises(CheckpointError, match=r"Attempt 1 .* is superseded"):
        save(first, 3)

    assert names(second) == ["step_0000002", "step_0000003"]
    assert (second.path / "checkpoints" / "step_0000003" / "manifest.json").read_bytes() == before
    assert b'"attempt": 2' in before


def test_a_job_superseded_while_it_writes_does_not_publish_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(tmp_path / "run")
    save(first, 1)
    write = save_module._write_manifest

    def overtaken(*arguments: object) -> None:
        monkeypatch.setattr(save_module, "_write_manifest", write)
        (tmp_path / "run" / "lock").unlink()
        save(start(tmp_path / "run"), 2)  # the new job removes what the old one is writing
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(save_module, "_write_manifest", overtaken)
    with pytest.raises(CheckpointError, match=r"Attempt 1 .* is superseded"):
        save(first, 2)
    assert names(first) == ["step_0000001", "step_0000002"]


def test_a_job_superseded_after_it_has_written_does_not_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(tmp_path / "run")
    write = save_module._write_manifest

    def overtaken(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        (tmp_path / "run" / "lock").unlink()
        start(tmp_path / "run")

    monkeypatch.setattr(save_module, "_write_manifest", overtaken)
    with pytest.raises(CheckpointError, match=r"Attempt 1 .* is superseded"):
        save(first, 1)
    assert names(first) == []


def test_without_locks_the_staging_folder_of_another_job_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    start(tmp_path / "run")
    second = start(tmp_path / "run")
    for name in (".tmp-step_0000005-1", ".tmp-step_0000004-2"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
    save(second, 6)
    assert names(second) == [".tmp-step_0000005-1", "step_0000006"]


def test_nothing_is_rebuilt_where_a_run_folder_was(tmp_path: Path) -> None:
    opened = start(tmp_path / "run")
    save(opened, 1)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is gone"):
        save(opened, 2)
    assert not (tmp_path / "run").exists()
