from pathlib import Path

import pytest

from tests.launchers.fakes import make_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder that looks like the repository to the scripts; commands there only take notes."""
    return make_repository(tmp_path)
