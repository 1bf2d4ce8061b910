import pytest

from glm_dist.config.schema import LRScheduleConfig, LRScheduleKind
from glm_dist.optim.lr_schedule import learning_rate

LARGE = LRScheduleConfig(
    kind=LRScheduleKind.cosine, warmup_share=0.05, decay_steps=160_000, decay_to_ratio=0.05
)
TEN_B = LRScheduleConfig(
    kind=LRScheduleKind.cosine, warmup_share=0.04, decay_steps=175_000, decay_to_ratio=0.1
)


@pytest.mark.parametrize(
    ("step", "rate"),
    # Official GLM-Large: warm-up 8 000 of 160 000 steps to 2e-4, floor 5 % of it.
    # 80 000: r = 72/152, 1e-5 * (1 + 19 * (cos(pi r) + 1) / 2) = 1.12845e-4.
    [(4_000, 1e-4), (8_000, 2e-4), (80_000, 1.12845e-4), (160_000, 1e-5)],
)
def test_large_rates_are_the_official_ones(step: int, rate: float) -> None:
    assert learning_rate(LARGE, 2e-4, step) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "rate"),
    # Official GLM-10B: warm-up 7 000 of 175 000 steps to 1e-4, floor 10 % of it.
    [(3_500, 5e-5), (7_000, 1e-4), (87_500, 5.79431e-5), (175_000, 1e-5)],
)
def test_10b_rates_are_the_official_ones(step: int, rate: float) -> None:
    assert learning_rate(TEN_B, 1e-4, step) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("kind", list(LRScheduleKind), ids=lambda kind: kind.name)
def test_first_update_has_rate_zero(kind: LRScheduleKind) -> None:
    schedule = LRScheduleConfig(kind=kind, warmup_share=0.1, decay_steps=100, decay_to_ratio=0.1)
    assert learning_rate(schedule, 1e-3, 0) == 0.0


def test_cosine_stays_at_its_floor_after_decay() -> None:
    # Floor 2e-4 * 0.05 = 1e-5, at the end of decay and 40 000 steps later.
    assert learning_rate(LARGE, 2e-4, 200_000) == pytest.approx(1e-5, rel=1e-12)


def test_linear_falls_straight_then_stays_at_its_floor() -> None:
    # The official 10B "longer" line falls by 0.9 * 3e-5 over 49 750 steps and reaches -1.05e-4 at
    # step 250 000; ours is clamped at 3e-6. Half way: 250 + 24 875 steps, (3e-5 + 3e-6) / 2.
    schedule = LRScheduleConfig(
        kind=LRScheduleKind.linear, warmup_share=0.005, decay_steps=50_000, decay_to_ratio=0.1
    )
    assert learning_rate(schedule, 3e-5, 250) == 3e-5
    assert learning_rate(schedule, 3e-5, 25_125) == pytest.approx(1.65e-5, rel=1e-12)
    assert learning_rate(schedule, 3e-5, 50_000) == pytest.approx(3e-6, rel=1e-12)
    assert learning_rate(schedule, 3e-5, 250_000) == pytest.approx(3e-6, rel=1e-12)


def test_constant_keeps_the_peak_after_warm_up() -> None:
    schedule = LRScheduleConfig(
        kind=LRScheduleKind.constant, warmup_share=0.1, decay_steps=100, decay_to_ratio=1.0
    )
    assert [learning_rate(schedule, 2.0, step) for step in (5, 10, 50, 500)] == [1.0, 2.0, 2.0, 2.0]


def test_without_warm_up_the_first_rate_is_the_peak() -> None:
    schedule = LRScheduleConfig(
        kind=LRScheduleKind.cosine, warmup_share=0.0, decay_steps=10, decay_to_ratio=0.1
    )
    assert learning_rate(schedule, 1.0, 0) == pytest.approx(1.0, rel=1e-12)


def test_cosine_may_end_at_zero() -> None:
    schedule = LRScheduleConfig(
        kind=LRScheduleKind.cosine, warmup_share=0.0, decay_steps=10, decay_to_ratio=0.0
    )
    assert learning_rate(schedule, 1.0, 5) == pytest.approx(0.5, rel=1e-12)
    assert learning_rate(schedule, 1.0, 10) == 0.0


def test_long_warm_up_ends_at_the_peak_then_falls_to_the_floor() -> None:
    # Nine of ten steps warm up; the tenth falls from 1 to 0.1.
    schedule = LRScheduleConfig(
        kind=LRScheduleKind.linear, warmup_share=0.9, decay_steps=10, decay_to_ratio=0.1
    )
    assert learning_rate(schedule, 1.0, 9) == 1.0
    assert learning_rate(schedule, 1.0, 10) == pytest.approx(0.1, rel=1e-12)
