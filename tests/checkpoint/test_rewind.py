"""A run goes back to one of its checkpoints, and loses none by it."""

from pathlib import Path

import pytest
import torch

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.rewind import REWOUND_TO, list_candidates, set_later_aside
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.errors import CheckpointError
from tests.messages import Says


def save(directory: Path, *steps: int, **extra: Json) -> None:
    for step in steps:
        save_checkpoint(
            directory,
            step=step,
            tensors={"model.w": torch.ones(2)},
            extra=extra,
            layout={},
            keep_last=10,
        )


def candidates(directory: Path, step: int | None) -> list[int]:
    return [number for number, _ in list_candidates(directory, step)]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_exactly_the_step_asked_for_is_used_and_later_ones_are_renamed(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4)
    info = find_checkpoint(tmp_path, step=2)
    assert info is not None
    assert info.manifest.step == 2

    set_later_aside(tmp_path, 2)

    kept = [".rewound-step_0000003", ".rewound-step_0000004", "step_0000001", "step_0000002"]
    assert names(tmp_path) == kept
    assert candidates(tmp_path, None) == [2, 1]


def test_a_step_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, says: Says
) -> None:
    save(tmp_path, 1, 2, 3)
    set_later_aside(tmp_path, 2)
    with pytest.raises(CheckpointError) as caught:
        candidates(tmp_path, 3)
    assert (caught.value.key, caught.value.value) == ("checkpoint.step", 3)
    says(caught.value)


def test_the_same_command_goes_back_once(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4)
    set_later_aside(tmp_path, 2)
    assert candidates(tmp_path, 2) == [2]  # it was killed before its first save

    save(tmp_path, 3, **{REWOUND_TO: 2})
    assert candidates(tmp_path, 2) == [3, 2]  # it was stopped after it
    assert candidates(tmp_path, 1) == [1]  # another command goes back further

    save(tmp_path, 4)
    assert candidates(tmp_path, 2) == [2]  # a later attempt without the key; so this is a new wish


def test_a_crash_between_the_renames_leaves_the_earlier_ones_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2, 3, 4)
    rename = Path.rename

    def refuse_the_third(path: Path, target: Path) -> Path:
        if path.name == "step_0000003":
            raise OSError(30, "Read-only file system")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_the_third)
    with pytest.raises(CheckpointError, match="step_0000003 cannot be renamed"):
        set_later_aside(tmp_path, 1)
    assert candidates(tmp_path, None) == [3, 2, 1]
    assert candidates(tmp_path, 1) == [1]
