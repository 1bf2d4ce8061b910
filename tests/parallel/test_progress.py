"""Deadlines follow the median of a phase; the verdict names the rank that holds up the others."""

from dataclasses import replace

import pytest

from glm_dist.parallel.progress import (
    CONNECT,
    Deadlines,
    Progress,
    Report,
    verdict,
    with_answers_of_deaf_ranks,
)

DEADLINES = Deadlines(connect=60, first=1200, floor=300, factor=10, timeout=1800)


def test_a_phase_has_the_first_deadline_until_it_was_timed_three_times() -> None:
    assert DEADLINES.of("step", [50, 1]) == 1200
    # The median of 50, 1, 1 is 1; ten times that is below the floor.
    assert DEADLINES.of("step", [50, 1, 1]) == 300
    assert DEADLINES.of("save", [40, 50, 60]) == 500
    # Nine tenths of the collectives' 1800 s, instead of 10 * 300.
    assert DEADLINES.of("save", [300, 300, 300]) == 1620
    assert DEADLINES.of(CONNECT, []) == 60


def test_500_steps_after_a_20_times_slower_first_one_are_no_alarm() -> None:
    clock = [0.0]
    progress = Progress(lambda: clock[0])
    short = replace(DEADLINES, floor=0.5, first=30)
    for step in range(500):
        for phase, seconds in (("data", 0.1), ("step", 20.0 if step == 0 else 1.0), ("vote", 0.1)):
            progress.enter(phase)
            clock[0] += seconds
            found, spent = progress.seconds()
            assert spent < short.of(found, progress.durations(found))
    assert progress.seconds() == ("vote", pytest.approx(0.1))
    assert short.of("step", progress.durations("step")) == pytest.approx(10.0)


def test_without_a_first_deadline_nothing_expires() -> None:
    assert replace(DEADLINES, first=0).of("step", [1, 1, 1]) == float("inf")


def report(rank: int, **changes: object) -> Report:
    """A rank that waits in step 14 and answered."""
    waiting = Report(
        rank=rank,
        host=f"node{rank}",
        pid=100 + rank,
        step=14,
        phase="step",
        activity="forward-backward",
        seconds=60.0,
        waits=True,
        at="recv (p2p_communication.py:9)",
        written=1000.0,
        answers=True,
    )
    return replace(waiting, **changes)  # type: ignore[arg-type]


def judged(*reports: Report, world_size: int = 4, has_left: bool = False) -> str:
    """The verdict a second after the reports."""
    by_rank = {each.rank: each for each in reports}
    return verdict(by_rank, world_size=world_size, now=1001.0, has_left=has_left)


def test_in_a_pipeline_the_rank_that_waits_for_nobody_is_named() -> None:
    busy = report(1, waits=False, at="loss (task.py:3)")
    assert judged(report(0), busy, report(2), report(3)) == (
        "rank 1 on node1 has been in step 14 (forward-backward) for 60 s; it is busy in"
        " loss (task.py:3); ranks 0, 2, 3 wait"
    )


def test_of_busy_ranks_the_one_behind_is_named() -> None:
    ahead = report(2, waits=False, step=15, phase="record", activity="")
    behind = report(1, waits=False, phase="data", activity="")
    text = judged(report(0), ahead, behind, report(3))
    assert text.startswith("rank 1 on node1 has been in step 14 (data) for 60 s;")
    assert "rank 2" not in text


def test_a_rank_that_does_not_answer_is_named_before_busy_ones() -> None:
    silent = report(2, answers=False, written=940.0, step=13)
    assert judged(report(0), report(1, waits=False), silent, report(3)) == (
        "rank 2 on node2 (process 102) does not answer: it is stopped, or its host is down; its"
        " last report came 61 s ago from step 14, the others being in forward-backward (see its"
        " log/rank_0002.log); ranks 0, 3 wait"
    )


def test_a_deaf_rank_answers_by_a_report_since_the_alarm() -> None:
    deaf = report(0, answers=False, is_deaf=True, waits=False, written=940.0)
    before = {0: deaf, 1: report(1)}

    stopped = with_answers_of_deaf_ranks(before, before)
    alive = with_answers_of_deaf_ranks({**before, 0: replace(deaf, written=941.0)}, before)

    assert judged(*stopped.values(), world_size=2).startswith("rank 0 on node0 (process 100) does")
    assert judged(*alive.values(), world_size=2).startswith("rank 0 on node0 has been in step 14")


def test_after_a_lost_connection_a_silent_rank_has_left() -> None:
    silent = report(1, answers=False)
    assert judged(report(0), silent, world_size=2, has_left=True) == (
        "rank 1 on node1 left in step 14 (forward-backward) (see its log/rank_0001.log);"
        " rank 0 waits"
    )
    assert judged(report(0), world_size=2, has_left=True) == (
        "rank 1 left and has never reported (see its log/rank_0001.log); rank 0 waits"
    )


def test_where_all_wait_and_none_is_behind_no_rank_is_accused() -> None:
    text = judged(*(report(rank) for rank in range(4)))
    assert text.startswith("all 4 ranks are in step 14 (forward-backward) for 60 s and none is")


def test_a_report_survives_the_way_through_the_store() -> None:
    assert Report.from_json(report(3).to_json()) == report(3)
    assert Report.from_json('{"rank": 1}') is None
    assert Report.from_json("half of a li") is None
