"""Stop in time for the last save: arithmetic of the clock, and the launchers' patience."""

import pytest

from glm_dist.train.time_limit import TimeLimit, grace_warning, job_end


def limit(**options: float) -> TimeLimit:
    """A job of 1000 s, so the margin is 30 s, with steps of 10 s after the first save took 40."""
    made = TimeLimit(parameters=0, started=0.0, **{"end": 1000.0, **options})
    for now in (100.0, 110.0):
        made.step_done(now)
    made.save_done(40.0)
    return made


def test_the_last_step_leaves_time_for_a_slow_save() -> None:
    # 1000 - 30 of margin - 1.5 x 40 for the save - 10 for one more step = 900.
    made = limit()
    assert not made.is_near(899.0, steps=1)
    assert made.is_near(900.0, steps=1)
    assert made.is_near(910.0, steps=0)
    assert not made.is_near(909.0, steps=0)


def test_the_time_of_a_save_is_no_steps_time() -> None:
    made = limit()
    made.step_done(160.0)  # 110 + 40 for the save + 10
    assert not made.is_near(899.0, steps=1)


def test_the_longer_of_the_last_two_saves_counts() -> None:
    made = limit()
    made.save_done(20.0)
    assert made.save_seconds == 40.0
    made.save_done(20.0)
    assert made.save_seconds == 20.0


def test_a_stop_waits_for_the_save_in_flight_and_makes_another() -> None:
    made = limit()
    # 1000 - 30 of margin = 970; the save in flight may take until 910, and the last one 60.
    made.save_began(850.0)
    assert made.is_near(850.0, steps=0)
    made.save_began(849.0)
    assert not made.is_near(849.0, steps=0)
    assert not made.is_near(880.0, steps=0)  # steps meanwhile cost nothing: it ends at 909
    made.save_done(40.0, waited=False)
    assert not made.is_near(899.0, steps=1)


def test_the_first_save_is_estimated_from_the_parameters() -> None:
    # 10^9 x 12 bytes / 200 MB/s
    made = TimeLimit(parameters=10**9, started=0.0)
    assert made.save_seconds == 60.0


def test_each_start_makes_at_least_one_step() -> None:
    made = TimeLimit(parameters=10**12, started=0.0, end=10.0)
    made.step_done(100.0)
    assert not made.is_near(100.0, steps=1)
    made.step_done(101.0)
    assert made.is_near(101.0, steps=1)


def test_the_earlier_of_two_limits_counts_and_none_is_none() -> None:
    both = TimeLimit(parameters=0, started=100.0, max_minutes=2, end=1000.0)
    assert both.name == "run.max_minutes=2"
    assert TimeLimit(parameters=0, started=100.0, max_minutes=60, end=1000.0).name == (
        "SLURM_JOB_END_TIME"
    )
    free = TimeLimit(parameters=0, started=100.0)
    free.step_done(200.0)
    free.step_done(300.0)
    assert not free.is_near(1e12, steps=1)


@pytest.mark.parametrize(
    ("environ", "end"), [({}, 0.0), ({"SLURM_JOB_END_TIME": "1800000000"}, 1.8e9)]
)
def test_slurm_tells_when_the_job_ends(environ: dict[str, str], end: float) -> None:
    assert job_end(environ) == end


@pytest.mark.parametrize(
    ("launcher", "in_docker", "seconds", "advice"),
    [
        ("torchrun", False, 31.0, "send USR1 to one rank"),
        ("torchrun", False, 30.0, ""),
        ("srun", False, 45.0, "--signal=USR1@120"),
        ("srun", False, 200.0, "--signal=USR1@420"),
        ("deepspeed", True, 11.0, "docker stop -t 60"),
        ("python", False, 1e6, ""),
        ("python", True, 11.0, "docker stop -t 60"),
    ],
)
def test_a_save_longer_than_the_launchers_patience_has_a_remedy(
    launcher: str, in_docker: bool, seconds: float, advice: str
) -> None:
    text = grace_warning(launcher, seconds, measured=True, in_docker=in_docker)
    assert advice in text
    assert bool(text) == bool(advice)


def test_a_stop_may_wait_for_two_saves_if_they_are_in_the_background() -> None:
    for seconds, warns in ((15, False), (16, True)):
        text = grace_warning(
            "torchrun", seconds, measured=True, in_docker=False, in_background=True
        )
        assert text.startswith("a save takes 16 s and the one before must end first, but") == warns
        assert bool(text) == warns
