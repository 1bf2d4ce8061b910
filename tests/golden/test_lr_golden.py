"""The official code's learning rates, step by step."""

import json
from pathlib import Path

import numpy as np
import pytest

from glm_dist.config.schema import LRScheduleConfig, LRScheduleKind
from glm_dist.optim.lr_schedule import learning_rate
from tests.golden.reference import reference_files


@pytest.mark.golden
@pytest.mark.parametrize("trace", reference_files("training/*.npz"))
def test_learning_rates_equal_the_official_ones(trace: Path) -> None:
    settings = json.loads(trace.with_suffix(".json").read_text())
    schedule = LRScheduleConfig(
        kind=LRScheduleKind[settings.get("decay", "cosine")],
        warmup_share=settings["warmup_steps"] / settings["decay_iters_total"],
        decay_steps=settings["decay_iters_total"],
        decay_to_ratio=settings["decay_to_ratio"],
    )
    official = np.load(trace)["lr"]
    ours = [learning_rate(schedule, settings["peak_lr"], step) for step in range(len(official))]
    # The share times the steps may miss the warm-up by one rounding; nothing else may differ.
    np.testing.assert_allclose(ours, official, rtol=1e-14, atol=0)
