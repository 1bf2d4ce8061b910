"""Retention counts what could be loaded, and never removes the two newest that can."""

import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.checkpoint.save import save_checkpoint
from tests.ranks import run_ranks


def save(directory: Path, step: int, *, keep_last: int = 1, upkeep: Upkeep | None = None) -> Path:
    return save_checkpoint(
        directory,
        step=step,
        tensors={"model.w": torch.full((4, 3), float(step))},
        extra={},
        layout={},
        keep_last=keep_last,
        upkeep=upkeep,
    )


def save_all(directory: Path, *steps: int) -> None:
    for step in steps:
        save(directory, step, keep_last=10)


def damage(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def kept(directory: Path) -> list[str]:
    return sorted(path.name.replace("step_00000", "") for path in directory.iterdir())


@pytest.mark.parametrize(("keep_last", "left"), [(1, ["03", "04"]), (3, ["02", "03", "04"])])
def test_the_newest_stay_and_never_fewer_than_two(
    tmp_path: Path, keep_last: int, left: list[str]
) -> None:
    save_all(tmp_path, 1, 2, 3)
    save(tmp_path, 4, keep_last=keep_last)
    assert kept(tmp_path) == left


def test_a_damaged_checkpoint_never_takes_the_turn_of_a_good_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_all(tmp_path, 10, 11, 12)
    damage(tmp_path / "step_0000012")
    with caplog.at_level(logging.WARNING):
        save(tmp_path, 13)
    assert kept(tmp_path) == [".bad-12", "11", "13"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert "set aside checkpoint" in line
    assert "as=.bad-step_0000012 reason=__0_0.distcp was changed" in line

    save(tmp_path, 14)
    assert kept(tmp_path) == [".bad-12", "13", "14"]
    info = find_checkpoint(tmp_path)
    assert info is not None
    assert info.manifest.step == 14


def test_nothing_is_removed_while_fewer_than_two_are_verified(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2, 3)
    for step in (2, 3):
        damage(tmp_path / f"step_000000{step}")
    save(tmp_path, 4)
    assert kept(tmp_path) == [".bad-02", ".bad-03", "01", "04"]


def test_each_checkpoint_is_hashed_at_most_once_by_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(tmp_path, 1, 2, 3)
    hashed: list[Path] = []
    read = Path.open

    def spy(path: Path, *arguments: str, **options: object) -> object:
        if path.suffix == ".distcp" and arguments == ("rb",):
            hashed.append(path)
        return read(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", spy)
    upkeep = Upkeep(verified={"step_0000003"})
    for step in (4, 5, 6):
        save(tmp_path, step, keep_last=3, upkeep=upkeep)

    assert {path.parent.name for path in hashed if path.parent.name[0] != "."} == {"step_0000002"}
    assert kept(tmp_path) == ["04", "05", "06"]
    assert upkeep.verified == {"step_0000004", "step_0000005", "step_0000006"}


def test_multiples_stay_for_ever_and_later_steps_of_a_rewound_run_as_well(tmp_path: Path) -> None:
    save_all(tmp_path, 20)
    upkeep = Upkeep(keep_every=4)
    for step in range(1, 12):
        save(tmp_path, step, keep_last=2, upkeep=upkeep)
    assert kept(tmp_path) == ["04", "08", "10", "11", "20"]


def test_a_start_sets_the_damaged_ones_aside_unless_nothing_else_is_left(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2, 3)
    damage(tmp_path / "step_0000003")
    info = find_checkpoint(tmp_path, sets_aside=True)
    assert info is not None
    assert info.path.name == "step_0000002"
    assert kept(tmp_path) == [".bad-03", "01", "02"]

    for step in (1, 2):
        damage(tmp_path / f"step_000000{step}")
    assert find_checkpoint(tmp_path, sets_aside=True) is None
    assert kept(tmp_path) == [".bad-03", "01", "02"]


def check_two_ranks_agree(folder: str) -> list[str]:
    upkeep = Upkeep()
    for step in (4, 5):
        save(Path(folder), step, upkeep=upkeep)
    dist.barrier()
    return sorted(upkeep.verified)


def test_ranks_share_the_hashing_and_the_outcome(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2, 3)
    damage(tmp_path / "step_0000003")
    results = run_ranks(check_two_ranks_agree, str(tmp_path), world_size=2)
    assert results == [["step_0000004", "step_0000005"]] * 2
    assert kept(tmp_path) == [".bad-03", "04", "05"]


def test_what_the_system_cannot_read_now_is_neither_renamed_nor_removed_nor_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(tmp_path, 1, 2, 3)
    read = Path.open

    def fail_on_the_second(path: Path, *arguments: str, **options: object) -> object:
        if path.parent.name == "step_0000002" and path.suffix == ".distcp":
            raise OSError(5, "Input/output error")
        return read(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", fail_on_the_second)
    upkeep = Upkeep(verified={"step_0000003"})
    save(tmp_path, 4, keep_last=3, upkeep=upkeep)
    assert kept(tmp_path) == ["01", "02", "03", "04"]
    save(tmp_path, 5, keep_last=3, upkeep=upkeep)

    assert kept(tmp_path) == ["02", "03", "04", "05"]
    assert upkeep.unusable == {"step_0000002"}
