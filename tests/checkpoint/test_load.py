"""A checkpoint of any layout fills any other one, and damage is found before it is used."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.load import (
    find_checkpoint,
    load_tensors,
    read_checkpoint,
)
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.errors import CheckpointError
from tests.checkpoint.layouts import LAYOUTS, data, global_tensors, parts
from tests.ranks import run_ranks


def save(directory: Path, step: int, layout: str = "one", rank: int = 0) -> Path:
    return save_checkpoint(
        directory,
        step=step,
        tensors=parts(layout, rank, global_tensors()),
        extra={"rows": 8 * step},
        layout={"ranks": LAYOUTS[layout]},
        keep_last=10,
    )


def assert_loads(directory: Path, layout: str, rank: int = 0) -> None:
    info = find_checkpoint(directory)
    assert info is not None
    asked = parts(layout, rank, {n: torch.full_like(t, -9) for n, t in global_tensors().items()})
    load_tensors(info, asked)
    expected = parts(layout, rank, global_tensors())
    assert {n: data(t) for n, t in asked.items()} == {n: data(t) for n, t in expected.items()}


def check_layouts_write(folder: str, layouts: list[str]) -> None:
    for layout in layouts:
        save(Path(folder) / layout, 1, layout, dist.get_rank())


def check_layouts_read(folder: str, written: list[str], layouts: list[str]) -> None:
    for source in written:
        for layout in layouts:
            assert_loads(Path(folder) / source, layout, dist.get_rank())


def test_any_two_rank_layout_reads_what_one_process_or_another_layout_wrote(
    tmp_path: Path,
) -> None:
    two = ["rows", "columns", "flat"]
    save(tmp_path / "one", 1)
    run_ranks(check_layouts_write, str(tmp_path), two, world_size=2)
    run_ranks(check_layouts_read, str(tmp_path), ["one", *two], two, world_size=2)
    for layout in two:
        assert_loads(tmp_path / layout, "one")


@pytest.mark.slow
def test_flat_parts_of_column_shards_on_four_ranks_read_and_write_like_the_others(
    tmp_path: Path,
) -> None:
    save(tmp_path / "one", 1)
    run_ranks(check_layouts_write, str(tmp_path), ["columns_flat"], world_size=4)
    run_ranks(
        check_layouts_read,
        str(tmp_path),
        ["one", "columns_flat"],
        ["columns_flat"],
        world_size=4,
    )
    run_ranks(check_layouts_read, str(tmp_path), ["columns_flat"], ["flat", "rows"], world_size=2)
    assert_loads(tmp_path / "columns_flat", "one")


def check_stages_hold_different_names(folder: str) -> None:
    """Two pipeline stages; the tied weight lies on both, cut differently, saved by the first."""
    rank = dist.get_rank()
    tied = torch.arange(12.0).view(3, 4)
    names = {
        f"model.layer{rank}": torch.full((2,), float(rank)),
        "model.tied": Fragment(
            tied.view(-1).clone(), global_shape=(3, 4), local_shape=(3, 4), is_saved=rank == 0
        ),
    }
    save_checkpoint(Path(folder), step=1, tensors=names, extra={}, layout={"pp": 2}, keep_last=1)
    info = find_checkpoint(Path(folder))
    assert info is not None
    copy = torch.zeros(5 + rank)
    target = Fragment(copy, global_shape=(3, 4), local_shape=(3, 4), start=3 * rank)
    own = torch.zeros(2)
    load_tensors(info, {f"model.layer{rank}": own, "model.tied": target})
    assert own.tolist() == [float(rank)] * 2
    assert copy.tolist() == [float(x) for x in range(3 * rank, 3 * rank + 5 + rank)]


def test_stages_with_different_names_and_a_tied_weight_share_one_checkpoint(
    tmp_path: Path,
) -> None:
    run_ranks(check_stages_hold_different_names, str(tmp_path), world_size=2)


def check_damage_is_found_by_the_rank_that_reads_it(folder: str) -> None:
    info = find_checkpoint(Path(folder))
    assert info is not None
    assert info.manifest.step == 1


def test_all_ranks_skip_what_one_of_them_found_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    flip_a_byte(tmp_path / "step_0000002" / "__0_0.distcp")
    run_ranks(check_damage_is_found_by_the_rank_that_reads_it, str(tmp_path), world_size=2)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_a_number(path: Path) -> None:
    path.write_text(path.read_text().replace('"rows": 16', '"rows": 17'))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("__0_0.distcp", flip_a_byte, "__0_0.distcp was changed"),
        ("__0_0.distcp", cut_short, r"__0_0.distcp has \d+ of \d+ bytes"),
        ("__0_0.distcp", Path.unlink, "__0_0.distcp is missing"),
        ("manifest.json", Path.unlink, "no manifest.json"),
        ("manifest.json", cut_short, "unreadable manifest.json"),
        ("manifest.json", change_a_number, "manifest.json that was changed"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: object,
    reason: str,
) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    assert callable(damage)
    damage(tmp_path / "step_0000002" / name)
    with caplog.at_level(logging.WARNING):
        info = find_checkpoint(tmp_path)
    assert info is not None
    assert info.path == tmp_path / "step_0000001"
    assert info.manifest.extra == {"rows": 8}
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "step_0000002" in warning
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "step_0000002")


def test_without_content_checks_only_sizes_count(tmp_path: Path) -> None:
    save(tmp_path, 1)
    flip_a_byte(tmp_path / "step_0000001" / "__0_0.distcp")
    assert find_checkpoint(tmp_path, verify=False) is not None
    assert find_checkpoint(tmp_path) is None


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step_0000007-1").mkdir()
    (tmp_path / "notes").mkdir()
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "absent") is None


def test_a_checkpoint_about_to_be_replaced_still_counts(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).rename(tmp_path / ".old-step_0000002")
    info = find_checkpoint(tmp_path)
    assert info is not None
    assert info.manifest.step == 2
    save(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_000000{n}" for n in (1, 2, 3)]


def test_missing_left_over_and_misshapen_tensors_are_listed_together(tmp_path: Path) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    assert info is not None
    asked = global_tensors()
    asked["model.extra"] = asked.pop("model.bias")
    asked["model.weight"] = torch.zeros(6, 9)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(info, asked)
    assert caught.value.value == (
        "it has no model.extra; the model has no model.bias; "
        "model.weight is of shape (6, 8), not (6, 9)"
    )


def test_prefixes_read_weights_without_optimizer_state(tmp_path: Path) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    assert info is not None
    weights = {n: torch.zeros_like(t) for n, t in global_tensors().items() if n[:6] == "model."}
    load_tensors(info, weights, prefixes=["model."])
    assert weights["model.bias"].tolist() == [100.0, 101.0, 102.0, 103.0, 104.0]
    del weights["model.bias"]
    with pytest.raises(CheckpointError, match=r"the model has no model\.bias"):
        load_tensors(info, weights, prefixes=["model."])


def test_loading_converts_to_the_dtype_asked_for_and_fills_parameters(tmp_path: Path) -> None:
    save(tmp_path, 1)
    info = find_checkpoint(tmp_path)
    assert info is not None
    bias = torch.nn.Parameter(torch.zeros(5, dtype=torch.bfloat16))
    load_tensors(info, {"model.bias": bias}, prefixes=["model.bias"])
    assert bias.tolist() == [100.0, 101.0, 102.0, 103.0, 104.0]


def test_a_moved_checkpoint_loads(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert_loads(tmp_path / "b", "one")
