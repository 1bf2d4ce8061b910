"""Speeds, waits and arrival are arithmetic on the clock."""

import pytest

from glm_dist.observe.phases import PhaseClock
from glm_dist.observe.throughput import Throughput


class Clock:
    """Clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def phases(clock: Clock) -> PhaseClock:
    return PhaseClock(clock)


def throughput(phases: PhaseClock, first_step: int = 0, last_step: int = 10) -> Throughput:
    return Throughput(first_step=first_step, last_step=last_step, world_size=4, phases=phases)


def test_speed_is_tokens_over_the_time_of_the_steps(clock: Clock, phases: PhaseClock) -> None:
    speed = throughput(phases)
    for _ in range(2):
        clock.pass_seconds(5)
        speed.step_done(1000)
    record = speed.take()
    assert record["speed/seconds_per_step"] == 5.0
    assert record["speed/tokens_per_second"] == 200.0  # 2000 tokens in 10 s
    assert record["speed/tokens_per_second_per_gpu"] == 50.0  # 4 processes


def test_pauses_count_for_arrival_but_not_for_speed(clock: Clock, phases: PhaseClock) -> None:
    speed = throughput(phases)
    clock.pass_seconds(60)  # compiles
    speed.step_done(1000)
    speed.take()
    clock.pass_seconds(4)
    speed.step_done(1000)
    with phases("save"):
        clock.pass_seconds(6)
    record = speed.take()
    assert record["speed/tokens_per_second"] == 250.0  # 1000 tokens in 4 s
    assert record["speed/eta_seconds"] == 80.0  # 8 steps left at 10 s each, the first left out
    assert record["speed/save_share"] == 0.6  # 6 s of 10 s


def test_arrival_after_the_first_step_alone_uses_its_pace(clock: Clock, phases: PhaseClock) -> None:
    speed = throughput(phases, first_step=7)
    clock.pass_seconds(3)
    speed.step_done(1000)
    assert speed.take()["speed/eta_seconds"] == 6.0  # steps 9 and 10 at 3 s each


def test_the_last_step_arrives_now(clock: Clock, phases: PhaseClock) -> None:
    speed = throughput(phases, first_step=8)
    for _ in range(2):
        clock.pass_seconds(3)
        speed.step_done(1000)
    assert speed.take()["speed/eta_seconds"] == 0.0


def test_waits_are_shares_of_step_time_by_reason(clock: Clock, phases: PhaseClock) -> None:
    speed = throughput(phases)
    for wait in (1.0, 2.0):
        with phases("data"):
            clock.pass_seconds(wait)
        clock.pass_seconds(4.5)
        speed.step_done(10)
    record = speed.take()
    assert record["speed/wait_share_data"] == 0.25  # 3 s of 12 s


def test_each_record_stands_for_its_own_steps(clock: Clock, phases: PhaseClock) -> None:
    speed = throughput(phases)
    clock.pass_seconds(1)
    speed.step_done(100)
    speed.take()
    clock.pass_seconds(2)
    speed.step_done(100)
    record = speed.take()
    assert record["speed/tokens_per_second"] == 50.0
    assert "speed/wait_share_data" not in record


def test_no_step_no_speed(clock: Clock, phases: PhaseClock) -> None:
    speed = throughput(phases)
    clock.pass_seconds(1)
    assert speed.take() == {}


def test_a_phase_inside_another_counts_for_itself_alone(clock: Clock, phases: PhaseClock) -> None:
    with phases("save"):
        clock.pass_seconds(2)
        with phases("data"):
            clock.pass_seconds(3)
            assert phases.current == "data"
        clock.pass_seconds(4)
        assert phases.take() == {"save": 6.0, "data": 3.0}
        clock.pass_seconds(1)
    assert phases.take() == {"save": 1.0}
    assert phases.current is None
