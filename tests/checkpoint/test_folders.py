"""Names of checkpoint folders and what survives renames, leftovers and removals."""

import logging
from pathlib import Path

import pytest

from glm_dist.checkpoint.folders import (
    BAD,
    create_staging,
    list_set_aside,
    list_steps,
    publish,
    set_aside,
)


def make(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).mkdir(parents=True)
        (directory / name / "content").write_text(name)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_only_steps_are_listed_newest_first_and_a_replacement_before_the_replaced(
    tmp_path: Path,
) -> None:
    make(tmp_path, "step_0000002", ".old-step_0000010", "step_0000010", "step_12345678")
    make(tmp_path, ".tmp-step_0000011-1", ".trash-step_0000001", "step_3", "step_0000004.bak")
    (tmp_path / "step_0000009").write_text("a file")
    assert [(step, path.name) for step, path in list_steps(tmp_path)] == [
        (12345678, "step_12345678"),
        (10, "step_0000010"),
        (10, ".old-step_0000010"),
        (2, "step_0000002"),
    ]


def test_a_directory_that_does_not_exist_lists_nothing(tmp_path: Path) -> None:
    assert list_steps(tmp_path / "absent") == []


def test_a_new_save_clears_what_interrupted_ones_left(tmp_path: Path) -> None:
    make(tmp_path, ".tmp-step_0000002-1", ".trash-step_0000001", "step_0000001", "notes")
    make(tmp_path, ".old-step_0000001", ".old-step_0000003")
    staging = create_staging(tmp_path, 2)
    assert names(tmp_path) == [".tmp-step_0000002-1", "notes", "step_0000001", "step_0000003"]
    assert list(staging.iterdir()) == []
    assert (tmp_path / "step_0000001" / "content").read_text() == "step_0000001"


def test_a_leftover_that_cannot_be_removed_gets_out_of_the_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".tmp-step_0000002-1").write_text("a file, which rmtree refuses")
    with caplog.at_level(logging.WARNING):
        staging = create_staging(tmp_path, 2)
    assert staging.name == ".tmp-step_0000002-1.2"
    assert "could not remove leftover" in caplog.text


def test_publishing_replaces_an_older_folder_of_the_same_name(tmp_path: Path) -> None:
    make(tmp_path, "step_0000001", "staging")
    publish(tmp_path / "staging", tmp_path / "step_0000001")
    assert names(tmp_path) == ["step_0000001"]
    assert (tmp_path / "step_0000001" / "content").read_text() == "staging"


def test_a_rename_that_fails_halfway_leaves_the_older_folder_findable(tmp_path: Path) -> None:
    make(tmp_path, "step_0000001")
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "absent", tmp_path / "step_0000001")
    ((step, path),) = list_steps(tmp_path)
    assert step == 1
    assert (path / "content").read_text() == "step_0000001"


def test_a_folder_set_aside_is_no_checkpoint_and_blocks_no_other_one(tmp_path: Path) -> None:
    for _ in range(2):
        make(tmp_path, "step_0000004")
        set_aside(tmp_path / "step_0000004", BAD, reason="")
    make(tmp_path, "step_0000003")

    create_staging(tmp_path, 4)

    assert list_set_aside(tmp_path, BAD) == [".bad-step_0000004-2", ".bad-step_0000004"]
    assert [step for step, _ in list_steps(tmp_path)] == [3]
    assert (tmp_path / ".bad-step_0000004" / "content").exists()
