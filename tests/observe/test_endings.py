"""Markers of a run's ending: what a start removes, and what stays."""

import json
from pathlib import Path

import pytest

from glm_dist.observe.endings import Stopped, remove_endings, write_finished, write_stopped


def test_a_start_removes_the_last_stop(tmp_path: Path) -> None:
    write_stopped(tmp_path, Stopped(7, 2, "SIGTERM", saved=True, status=75))
    assert json.loads((tmp_path / "stopped").read_text()) == {
        "step": 7,
        "attempt": 2,
        "reason": "SIGTERM",
        "saved": True,
        "status": 75,
    }

    remove_endings(tmp_path, last_step=10)

    assert not (tmp_path / "stopped").exists()


@pytest.mark.parametrize(("last_step", "stays"), [(10, True), (8, True), (11, False)])
def test_a_finished_run_is_finished_until_it_gets_more_steps(
    last_step: int, stays: bool, tmp_path: Path
) -> None:
    write_finished(tmp_path, step=10, attempt=1)

    remove_endings(tmp_path, last_step=last_step)

    assert (tmp_path / "finished").exists() == stays


def test_the_attempt_that_finished_is_kept(tmp_path: Path) -> None:
    write_finished(tmp_path, step=10, attempt=1)
    write_finished(tmp_path, step=10, attempt=2)
    assert json.loads((tmp_path / "finished").read_text())["attempt"] == 1


def test_an_empty_marker_of_another_program_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "finished").touch()
    remove_endings(tmp_path, last_step=10)
    write_finished(tmp_path, step=10, attempt=3)
    assert json.loads((tmp_path / "finished").read_text())["attempt"] == 3
