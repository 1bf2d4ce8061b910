"""Saves in the background on a GPU: pinned memory, copies on a separate stream, equal files."""

from pathlib import Path

import torch

from glm_dist.checkpoint.snapshot import Snapshot
from tests.gpu.device import DEVICE
from tests.ranks import run_ranks
from tests.train.test_saver import CASES, save_both_ways


def test_files_are_equal_to_those_of_a_save_that_training_waits_for(tmp_path: Path) -> None:
    found = run_ranks(save_both_ways, CASES, str(tmp_path), world_size=2, device=DEVICE)[0]

    for case, (waited, begun) in zip(CASES, found, strict=True):
        assert waited == begun, case


def copied_after_a_long_kernel() -> tuple[bool, float]:
    """Snapshot of a tensor that the current stream is still computing."""
    device = torch.device(DEVICE)
    tensor = torch.zeros(2**20, device=device)
    factor = torch.rand(4096, 4096, device=device)
    for _ in range(20):
        factor @ factor
    tensor += 1
    (box,) = Snapshot(device).take({"model.w": tensor})["model.w"].parts()
    return box.is_pinned(), float(box.min())


def test_the_copy_is_pinned_and_waits_for_the_update_before_it() -> None:
    assert run_ranks(copied_after_a_long_kernel, world_size=1, device=DEVICE) == [
        (DEVICE == "cuda", 1.0)
    ]
