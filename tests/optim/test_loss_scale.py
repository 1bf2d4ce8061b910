"""The dynamic loss scale against DeepSpeed's, whose checkpoints it continues."""

from types import SimpleNamespace

import numpy as np
import pytest

from glm_dist.optim import deepspeed_engine as deepspeed_engine  # sets what the import needs
from glm_dist.optim.loss_scale import DynamicLossScale
from glm_dist.optim.state import LOSS_SCALER_FIELDS


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_scale_and_counters_follow_deepspeeds(
    hysteresis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime.fp16 import loss_scaler

    monkeypatch.setattr(loss_scaler, "dist", SimpleNamespace(get_rank=lambda: 1))
    theirs = loss_scaler.DynamicLossScaler(
        init_scale=2.0**6,
        scale_window=4,
        min_scale=2,
        delayed_shift=hysteresis,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
    )
    ours = DynamicLossScale(cur_scale=2.0**6, window=4, hysteresis=hysteresis, min_scale=2)
    # Long quiet stretches, in which the scale grows, and stormy ones, in which it meets its floor.
    rng = np.random.Generator(np.random.Philox(key=[3, hysteresis]))
    scales = set()

    for step in range(400):
        overflowed = bool(rng.random() < (0.05 if step // 50 % 2 else 0.7))
        theirs.update_scale(overflowed)
        ours.update(overflowed=overflowed)
        assert ours.state() == {name: getattr(theirs, name) for name in LOSS_SCALER_FIELDS}, step
        scales.add(ours.cur_scale)

    assert min(scales) == 2
    assert max(scales) > 2.0**6


def test_a_scale_at_its_floor_may_shrink_only_while_it_is_patient() -> None:
    scale = DynamicLossScale(cur_scale=4.0, window=10, hysteresis=2, min_scale=2.0)

    answers = []
    for _ in range(4):
        answers.append((scale.cur_scale, scale.may_shrink))
        scale.update(overflowed=True)

    # The first overflow costs patience; the second halves the scale, which is then at its floor.
    assert answers == [(4.0, True), (4.0, True), (2.0, False), (2.0, False)]
