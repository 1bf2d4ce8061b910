"""The spike detector on synthetic series."""

import json
import random

import pytest

from glm_dist.train.spikes import SpikeDetector


def healthy(steps: int, *, seed: int) -> list[tuple[float, float]]:
    """A falling loss with noise, and a norm that scatters by factors."""
    draw = random.Random(seed)
    return [
        (2.0 + 8.0 * 0.99**step + draw.gauss(0.0, 0.1), draw.lognormvariate(0.0, 0.4))
        for step in range(steps)
    ]


def alarms(detector: SpikeDetector, series: list[tuple[float, float]]) -> list[int]:
    found = []
    for step, (loss, norm) in enumerate(series):
        if detector.judge(loss, norm) is not None:
            found.append(step)
        detector.add(loss, norm)
    return found


@pytest.mark.parametrize("window", [32, 128])
def test_healthy_steps_raise_no_alarm(window: int) -> None:
    for seed in range(20):
        assert alarms(SpikeDetector(window=window, deviations=10.0), healthy(500, seed=seed)) == []


def test_a_jump_of_either_value_is_named_with_what_is_usual() -> None:
    detector = SpikeDetector(window=64, deviations=10.0)
    alarms(detector, [(2.0 + 0.1 * (step % 3), 1.0) for step in range(64)])

    # Median 2.1; deviations are 0.1, 0 and 0.1, so their median is 0.1 and sigma 0.14826.
    loss = detector.judge(4.1, 1.0)
    assert loss is not None
    assert (loss.what, loss.usual) == ("loss", pytest.approx(2.1))
    assert loss.deviations == pytest.approx(2.0 / 0.14826)
    norm = detector.judge(2.1, 100.0)
    assert norm is not None
    assert norm.what == "gradient norm"
    assert detector.judge(2.0, 0.001) is None  # a fall is no spike


def test_nothing_is_judged_before_the_window_is_full() -> None:
    detector = SpikeDetector(window=8, deviations=10.0)
    alarms(detector, [(2.0, 1.0)] * 7)
    assert detector.judge(1e6, 1e6) is None
    detector.add(2.0, 1.0)
    assert detector.judge(1e6, 1e6) is not None


def test_a_lasting_change_of_level_stops_raising_alarms() -> None:
    detector = SpikeDetector(window=16, deviations=10.0)
    found = alarms(detector, [(2.0, 1.0)] * 16 + [(4.0, 1.0)] * 30)
    assert found == list(range(16, 16 + 8))  # until half of the window has the new level


def test_the_window_survives_json() -> None:
    series = healthy(40, seed=1)
    one, other = (SpikeDetector(window=16, deviations=3.0) for _ in range(2))
    alarms(one, series)
    other.restore(json.loads(json.dumps(one.state())))
    rest = [(loss * 1.2, norm) for loss, norm in healthy(80, seed=2)[40:]]
    assert alarms(one, rest) == alarms(other, rest) != []
