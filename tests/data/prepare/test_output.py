"""Where nothing can be written, it is said before the work."""

from pathlib import Path

import pytest

from glm_dist.data.prepare.output import make_output_folder
from glm_dist.errors import DataError


def test_missing_folders_are_made(tmp_path: Path) -> None:
    make_output_folder(tmp_path / "a" / "b" / "text")

    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"--output = .*/file/text \(File exists\)"):
        make_output_folder(tmp_path / "file" / "text")
