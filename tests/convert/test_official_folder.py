"""Trackers, tags and parts of official checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest

from glm_dist.convert.official_folder import find_official, holds_official
from glm_dist.errors import CheckpointError
from tests.messages import Says


def parts(folder: Path, *ranks: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for rank in ranks:
        (folder / f"mp_rank_{rank:02d}_model_states.pt").touch()
    return folder


@pytest.mark.parametrize("content", ["100", "100\n", " 100 \r\n"])
@pytest.mark.parametrize("tracker", ["latest", "latest_checkpointed_iteration.txt"])
def test_trackers_are_read_with_and_without_a_line_end(
    tmp_path: Path, tracker: str, content: str
) -> None:
    parts(tmp_path / "50", 0)
    parts(tmp_path / "100", 0, 1)
    (tmp_path / tracker).write_text(content)

    files = find_official(tmp_path)

    assert (files.tag, files.iteration, len(files.parts)) == ("100", 100, 2)
    assert [path.name[:10] for path in files.parts] == ["mp_rank_00", "mp_rank_01"]


def test_a_folder_of_parts_needs_no_tracker(tmp_path: Path) -> None:
    folder = parts(tmp_path / "glm-large", 1, 0)

    for source in (folder, tmp_path, folder / "mp_rank_01_model_states.pt"):
        files = find_official(source)
        assert holds_official(tmp_path)
        assert (files.tag, files.iteration, len(files.parts)) == ("glm-large", None, 2)


def test_a_file_of_another_name_is_a_checkpoint_of_one_part(tmp_path: Path) -> None:
    file = tmp_path / "glm.pt"
    file.touch()

    assert find_official(file).parts == (file,)


def trackers_that_differ(folder: Path) -> None:
    parts(folder / "100", 0)
    parts(folder / "best", 0)
    (folder / "latest").write_text("best")
    (folder / "latest_checkpointed_iteration.txt").write_text("100")


def tracker_of_a_missing_tag(folder: Path) -> None:
    (folder / "latest").write_text("200")
    parts(folder / "100", 0)


def tracker_that_leads_out(folder: Path) -> None:
    (folder / "latest").write_text("../../etc")


def binary_tracker(folder: Path) -> None:
    (folder / "latest").write_bytes(bytes(range(256)) * 4)


def several_tags(folder: Path) -> None:
    parts(folder / "100", 0)
    parts(folder / "best", 0)


def missing_part(folder: Path) -> None:
    parts(folder, 0, 3)


@pytest.mark.parametrize(
    "make",
    [
        trackers_that_differ,
        tracker_of_a_missing_tag,
        tracker_that_leads_out,
        binary_tracker,
        several_tags,
        missing_part,
    ],
)
def test_folders_that_name_no_checkpoint_are_refused(
    tmp_path: Path, says: Says, make: Callable[[Path], None]
) -> None:
    make(tmp_path)

    with pytest.raises(CheckpointError) as caught:
        find_official(tmp_path)

    says(caught.value)
