"""A finished run is known without torch, and a script that started a job learns its folder."""

from pathlib import Path

import pytest

from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig
from glm_dist.observe.endings import write_finished
from glm_dist.train import already
from glm_dist.train.already import RUN_FOLDER_FILE, is_finished, note_run_folder


def made(folder: Path, *typed: str) -> RunConfig:
    return load_config(["experiment=tiny", "run.name=a", f"paths.runs={folder}", *typed])


@pytest.mark.parametrize(
    ("typed", "step", "newest", "expected"),
    [
        ([], 20, 20, True),
        ([], None, 20, False),
        (["run.steps=30"], 20, 20, False),  # it goes on
        (["checkpoint.step=10"], 20, 20, False),
        ([], 20, 10, False),  # its last checkpoint is gone
    ],
    ids=["finished", "not finished", "longer now", "goes back", "without its checkpoint"],
)
def test_a_finished_run_is_known(
    typed: list[str],
    step: int | None,
    newest: int,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = made(tmp_path, *typed)
    config.run_dir.mkdir()
    if step is not None:
        write_finished(config.run_dir, step=step, attempt=1)
    monkeypatch.setattr(already, "check_run_folder", lambda config: newest)
    assert not is_finished(config), "nothing says which configuration it was"
    (config.run_dir / "config.yaml").touch()
    assert is_finished(config) is expected


def test_a_script_learns_folder_newest_checkpoint_and_attempt(tmp_path: Path) -> None:
    config, note = made(tmp_path), tmp_path / "note"
    note_run_folder(config, {})
    assert not note.exists()
    note_run_folder(config, {RUN_FOLDER_FILE: str(note)})
    assert note.read_text() == f"{config.run_dir}\n\n1\n\n"
    (config.run_dir / "checkpoints/step_0000020").mkdir(parents=True)
    (config.run_dir / "checkpoints/step_0000010").mkdir()
    (config.run_dir / "provenance.json").write_text('{"attempts": [{}, {}]}')
    note_run_folder(config, {RUN_FOLDER_FILE: str(note)}, is_part=True)
    assert note.read_text() == f"{config.run_dir}\nstep_0000020\n3\npart\n"
