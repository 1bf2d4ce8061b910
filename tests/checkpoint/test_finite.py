"""State with a NaN or an infinity is neither saved nor used."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from glm_dist.checkpoint import save as save_module
from glm_dist.checkpoint.finite import non_finite
from glm_dist.checkpoint.fragments import Fragment
from glm_dist.checkpoint.load import choose_checkpoint, load_tensors
from glm_dist.checkpoint.reader import TensorReader
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.errors import CheckpointError, TrainingError
from tests.ranks import run_ranks


def save(directory: Path, step: int, tensors: dict[str, torch.Tensor]) -> Path:
    return save_checkpoint(directory, step=step, tensors=tensors, extra={}, layout={}, keep_last=5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_element_is_found_in_any_part(value: float, dtype: torch.dtype) -> None:
    good, bad = torch.zeros(1000, dtype=dtype), torch.zeros(2, 500, dtype=dtype)
    bad[1, 499] = value
    assert non_finite({"good": [good], "bad": [good, bad], "ids": [torch.zeros(3).long()]}) == [
        "bad"
    ]


def test_large_finite_values_are_finite() -> None:
    largest = torch.finfo(torch.float32).max
    assert non_finite({"w": [torch.full((10,), largest)], "none": [torch.zeros(0)]}) == []


def check_a_nan_on_one_rank_stops_all(folder: str) -> tuple[str, list[str]]:
    directory, rank = Path(folder), dist.get_rank()
    half = torch.ones(2, 3)
    part = {"model.w": Fragment(half, global_shape=(4, 3), offset=(2 * rank, 0))}
    save(directory, 20, dict(part))
    if rank == 1:
        half[1, 2] = math.nan
    with pytest.raises(TrainingError) as caught:
        save(directory, 25, dict(part))
    dist.barrier()
    return str(caught.value), sorted(os.listdir(directory))


def test_a_nan_on_one_rank_stops_the_save_on_all_and_writes_nothing(tmp_path: Path) -> None:
    first, second = run_ranks(check_a_nan_on_one_rank_stops_all, str(tmp_path), world_size=2)
    assert first == second
    message, left = first
    assert message.startswith("Step 25 is not saved, because its state is not finite: rank 1 on ")
    assert ": model.w.\n" in message
    assert "go back to one with checkpoint.step=20" in message
    assert left == ["step_0000020"]


def test_padding_of_a_shard_is_not_looked_at(tmp_path: Path) -> None:
    flat = torch.tensor([1.0, 2.0, 3.0, math.nan])
    save(tmp_path, 1, {"model.w": Fragment(flat, global_shape=(3,), local_shape=(3,))})


def test_a_checkpoint_of_an_older_version_with_a_nan_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(save_module, "check_before_save", lambda *_, **__: None)
        save(tmp_path, 1, {"model.w": torch.tensor([1.0, math.nan])})
    info = choose_checkpoint(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"step_0000001 holds values that are not finite"):
        load_tensors(info, {"model.w": torch.zeros(2)})
    reader = TensorReader(info.path, info.manifest)
    with pytest.raises(CheckpointError, match=r"not finite: model\.w\."):
        reader.read("model.w", info.manifest.tensors["model.w"])
