"""``checkpoint.step`` in real jobs, and checkpoints that are not where their numbers say."""

import json
import shutil
from pathlib import Path

import pytest

from tests.train.jobs import make_files, with_python


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run ``a`` of 3 steps with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("finished")
    job = [
        *make_files(folder),
        "parallel=single",
        "evaluation.interval=0",
        "checkpoint.interval=1",
        "run.steps=3",
    ]
    done = with_python([*job, "run.name=a"])
    assert done.returncode == 0, done.stderr
    return folder, job


def copy(folder: Path, name: str) -> Path:
    shutil.copytree(folder / "runs" / "a", folder / "runs" / name)
    return folder / "runs" / name / "checkpoints"


def manifest(checkpoint: Path) -> dict[str, dict[str, int]]:
    content: dict[str, dict[str, int]] = json.loads((checkpoint / "manifest.json").read_text())
    return content


def test_a_run_goes_back_once_and_keeps_what_it_leaves(finished: tuple[Path, list[str]]) -> None:
    folder, job = finished
    checkpoints = copy(folder, "back")
    command = [*job, "run.name=back", "checkpoint.step=1", "run.steps=2"]

    first = with_python(command)
    again = with_python([*command, "run.steps=3"])

    assert first.returncode == 0, first.stderr
    assert "loaded step=1" in first.stderr
    assert "as=.rewound-step_0000003" in first.stderr
    assert again.returncode == 0, again.stderr
    assert "went back to step=1 before" in again.stderr
    assert "loaded step=2" in again.stderr
    aside = [".rewound-step_0000002", ".rewound-step_0000003"]
    kept = ["step_0000001", "step_0000002", "step_0000003"]
    assert sorted(path.name for path in checkpoints.iterdir()) == aside + kept
    old, new = (manifest(checkpoints / name) for name in (".rewound-step_0000003", kept[-1]))
    assert old["files"] == new["files"]  # the same rows and masks give the same bits
    assert new["extra"]["rewound_to"] == 1


def test_a_folder_with_the_name_of_another_step_is_set_aside(
    finished: tuple[Path, list[str]],
) -> None:
    folder, job = finished
    checkpoints = copy(folder, "renamed")
    (checkpoints / "step_0000002").rename(checkpoints / "step_0000099")
    (checkpoints.parent / "finished").unlink()  # with it, nothing would be looked at

    done = with_python([*job, "run.name=renamed"])

    assert done.returncode == 0, done.stderr
    assert "reason=step_0000099 holds step 2" in done.stderr
    assert "continues from 99" not in done.stdout + done.stderr
    assert (checkpoints / ".bad-step_0000099").is_dir()


def test_another_batch_is_refused_without_the_saved_configuration(
    finished: tuple[Path, list[str]],
) -> None:
    folder, job = finished
    copy(folder, "rows")
    (folder / "runs" / "rows" / "config.yaml").unlink()

    done = with_python([*job, "run.name=rows", "batch.global_batch_size=8"])

    assert done.returncode == 2, done.stderr
    assert "3 steps have read 12 rows, but 24 with batch.global_batch_size=8" in done.stderr
    assert "rows 12 to 23 would never be read" in done.stderr
    assert "Set batch.global_batch_size=4" in done.stderr
