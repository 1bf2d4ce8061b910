"""Wall time is split without a gap, over attempts that ended in whatever way."""

import json
from pathlib import Path
from typing import Any

import pytest

from glm_dist.observe.goodput import (
    BUCKETS,
    Buckets,
    account,
    read_attempts,
    useful_share,
)
from glm_dist.observe.goodput_meter import GoodputMeter, process_start, summary
from glm_dist.observe.metrics_file import sound_records
from glm_dist.observe.phases import DATA, SAVE, STEP, PhaseClock
from glm_dist.observe.sinks import JsonlSink, SinkGroup

Line = dict[str, Any]


def line(time: float, attempt: int, step: int, **more: Any) -> Line:
    """A line; of metrics unless an event is named."""
    kind = {} if "event" in more else {"train/loss": 2.0}
    return {"time": time, "attempt": attempt, "step": step, **kind, **more}


def started(time: float, attempt: int, step: int, process_started: float) -> Line:
    return line(time, attempt, step, event="started", process_started=process_started)


def phases(step: float, data: float = 0.0, save: float = 0.0) -> dict[str, dict[str, float]]:
    return {"phase_seconds": {"step": step, "data": data, "save": save}}


def split(lines: list[Line]) -> Buckets:
    """Account of lines, without empty buckets, after checking that it adds up."""
    found = account(read_attempts(lines))
    begin = lines[0]["process_started"]
    assert sum(found.values()) == pytest.approx(lines[-1]["time"] - begin)
    return {name: round(x, 6) for name, x in found.items() if abs(x) > 1e-9}


def test_an_attempt_that_ends_in_order() -> None:
    assert split(
        [
            started(108.0, 1, 0, process_started=100.0),
            line(114.0, 1, 1, **phases(5.0, data=1.0)),  # 4 s more than the later ones
            line(120.0, 1, 5, **phases(9.0, data=3.0)),
            line(122.0, 1, 5, event="checkpoint", **phases(9.0, data=3.0, save=2.0)),
            line(122.5, 1, 5, event="ended", **phases(9.0, data=3.0, save=2.0)),
        ]
    ) == {
        "start_up": 8.0,
        "first_step": 4.0,
        "useful_steps": 5.0,
        "data": 3.0,
        "save": 2.0,
        "other": 0.5,
    }


def test_steps_that_the_next_attempt_repeats_are_lost_with_all_that_followed_them() -> None:
    assert split(
        [
            started(105.0, 1, 0, process_started=100.0),
            line(106.0, 1, 1, **phases(1.0)),
            line(107.0, 1, 2, **phases(2.0)),
            line(107.5, 1, 2, event="checkpoint", **phases(2.0, save=0.5)),
            line(110.5, 1, 5, **phases(5.0, save=0.5)),  # killed in step 6 or later
            started(135.0, 2, 2, process_started=130.0),
            line(136.0, 2, 3, **phases(1.0)),
            line(139.0, 2, 6, **phases(4.0)),
        ]
    ) == {"start_up": 10.0, "useful_steps": 6.0, "save": 0.5, "lost_steps": 3.0, "down": 19.5}


def test_a_later_attempt_from_an_older_step_loses_steps_of_several_attempts() -> None:
    found = split(
        [
            started(100.0, 1, 0, process_started=100.0),
            line(104.0, 1, 4, **phases(4.0)),  # one record for four steps
            started(105.0, 2, 4, process_started=105.0),
            line(106.0, 2, 5, **phases(1.0)),
            started(110.0, 3, 2, process_started=110.0),  # checkpoint 4 was damaged
            line(111.0, 3, 3, **phases(1.0)),
        ]
    )
    # Steps 3 and 4 are two of four seconds; step 5 is one.
    assert found == {"useful_steps": 3.0, "lost_steps": 3.0, "down": 5.0}


def test_steps_that_a_rewind_undoes_are_lost() -> None:
    assert split(
        [
            started(105.0, 1, 0, process_started=100.0),
            line(107.0, 1, 2, **phases(2.0)),
            line(110.0, 1, 5, **phases(5.0)),
            line(110.5, 1, 2, event="checkpoint", **phases(5.0, save=0.5)),
            line(111.5, 1, 6, event="skipped_rows", **phases(6.0, save=0.5)),
            line(113.5, 1, 2, event="rewound", **phases(8.0, save=0.5)),  # 2 s to load
            line(114.5, 1, 3, **phases(9.0, save=0.5)),
            line(116.5, 1, 4, **phases(10.0, save=0.5, data=1.0)),
            started(125.0, 2, 3, process_started=120.0),
            line(126.0, 2, 4, **phases(1.0)),
        ]
    ) == {
        "start_up": 10.0,
        "useful_steps": 2.0 + 1.0 + 1.0,
        "lost_steps": 6.5 + 2.0,  # from step 2 to the rewind, and step 4
        "down": 3.5,
    }


def test_steps_after_a_checkpoint_that_was_complete_late_are_lost() -> None:
    found = split(
        [
            started(100.0, 1, 0, process_started=100.0),
            line(102.0, 1, 2, **phases(2.0)),
            line(104.0, 1, 4, **phases(4.0)),
            line(104.5, 1, 2, event="checkpoint", **phases(4.5)),
            started(110.0, 2, 2, process_started=110.0),
            line(111.0, 2, 3, **phases(1.0)),
        ]
    )
    assert found == {"useful_steps": 3.0, "lost_steps": 2.5, "down": 5.5}


def test_an_older_run_folder_gives_what_its_metrics_say() -> None:
    pace = {"speed/seconds_per_step": 2.0, "speed/wait_share_data": 0.25}
    lines = [
        line(100.0, 1, 0, event="started"),
        line(102.0, 1, 1, **pace),
        line(120.0, 1, 10, **pace),
        line(123.0, 1, 10, event="checkpoint", seconds=3.0),
    ]
    assert split([{**lines[0], "process_started": 100.0}, *lines[1:]]) == {
        "useful_steps": 15.0,
        "data": 5.0,
        "save": 3.0,
    }
    assert account(read_attempts(lines))["start_up"] == 0.0


class Clocks:
    """A wall clock and a phase clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.phases = PhaseClock(lambda: self.time)

    def spend(self, phase: str, seconds: float) -> None:
        with self.phases(phase):
            self.time += seconds


def attempt(folder: Path, clocks: Clocks, number: int, *, first_step: int) -> SinkGroup:
    """Begin an attempt whose start took 3 s."""
    clocks.time += 3
    clocks.phases = PhaseClock(lambda: clocks.time)
    meter = GoodputMeter(
        folder,
        first_step=first_step,
        phases=clocks.phases,
        process_started=clocks.time - 3,
        clock=lambda: clocks.time,
    )
    path = folder / "metrics.jsonl"
    clock = lambda: clocks.time  # noqa: E731
    jsonl = JsonlSink(path, attempt=number, first_step=first_step, goodput=meter, clock=clock)
    return SinkGroup([jsonl], goodput=meter)


def test_the_metrics_of_a_running_job_are_those_of_its_file(tmp_path: Path) -> None:
    clocks = Clocks()
    sink = attempt(tmp_path, clocks, 1, first_step=0)
    for step in (1, 2, 3):
        clocks.spend(STEP, 1.0)
        sink.write(step, {"train/loss": 2.0})
        if step == 2:
            clocks.spend(SAVE, 0.5)
            sink.event(2, "checkpoint", {"path": "x"})
    # Killed here; the next process starts 7 s later.
    clocks.time += 7
    sink = attempt(tmp_path, clocks, 2, first_step=2)
    clocks.spend(DATA, 0.25)
    clocks.spend(STEP, 1.0)
    sink.write(3, {"train/loss": 2.0})
    sink.close()

    expected = {"start_up": 6.0, "useful_steps": 3.0, "save": 0.5, "lost_steps": 1.0}
    expected |= {"down": 7.0, "data": 0.25}
    last = [r for r in sound_records(tmp_path / "metrics.jsonl") if "train/loss" in r][-1]
    found = {name: last[f"goodput/seconds_{name}"] for name in BUCKETS}
    assert {name: x for name, x in found.items() if x} == expected
    assert last["goodput/useful_share"] == pytest.approx(3 / 17.75, abs=1e-6)
    computed = account(read_attempts(sound_records(tmp_path / "metrics.jsonl")))
    assert {n: x for n, x in computed.items() if x} == pytest.approx(expected)
    written = json.loads((tmp_path / "goodput.json").read_text())
    assert written["seconds"] == found
    assert (written["wall_seconds"], written["attempts"], written["step"]) == (17.75, 2, 3)


def test_the_metrics_of_a_job_that_rewinds_are_those_of_its_file(tmp_path: Path) -> None:
    clocks = Clocks()
    sink = attempt(tmp_path, clocks, 1, first_step=0)
    for step in (1, 2, 3):
        clocks.spend(STEP, 1.0)
        sink.write(step, {"train/loss": 2.0})
    clocks.spend(STEP, 1.5)
    sink.event(1, "rewound", {"from_step": 4})
    clocks.spend(STEP, 1.0)
    sink.write(2, {"train/loss": 2.0})
    sink.close()

    expected = {"start_up": 3.0, "useful_steps": 2.0, "lost_steps": 3.5}
    written = json.loads((tmp_path / "goodput.json").read_text())
    assert {name: x for name, x in written["seconds"].items() if x} == expected
    assert (written["step"], written["attempts"]) == (2, 1)
    computed = account(read_attempts(sound_records(tmp_path / "metrics.jsonl")))
    assert {n: x for n, x in computed.items() if x} == pytest.approx(expected)
    clocks.time += 1
    attempt(tmp_path, clocks, 2, first_step=2).close()
    later = json.loads((tmp_path / "goodput.json").read_text())
    assert later["attempts"] == 2
    assert sum(later["seconds"].values()) == clocks.time - 1000.0


def test_a_job_that_is_killed_long_after_its_last_record_was_alive_meanwhile(
    tmp_path: Path,
) -> None:
    clocks = Clocks()
    for number in (1, 2):
        sink = attempt(tmp_path, clocks, number, first_step=0)
        for step in range(1, 31):  # no record; the file is written about every ten seconds
            clocks.spend(STEP, 1.0)
            sink.alive(step)
        clocks.time += 5
    sink = attempt(tmp_path, clocks, 3, first_step=20)
    sink.close()
    found = json.loads((tmp_path / "goodput.json").read_text())["seconds"]
    # Written after steps 1, 11 and 21. The first attempt is repeated from step 0, the second from
    # step 20: of its 21 seconds one is lost.
    assert found["lost_steps"] == 21.0 + 1.0
    assert found["useful_steps"] == 20.0
    assert found["down"] == 2 * (9.0 + 5.0)
    assert sum(found.values()) == clocks.time - 1000.0


def test_an_unwritable_file_and_a_damaged_line_do_not_disturb_training(tmp_path: Path) -> None:
    (tmp_path / "goodput.json").write_text('{"signs_of_life": [{"step": "x"}]}')
    attempt(tmp_path, Clocks(), 1, first_step=0).close()
    (tmp_path / "goodput.json").unlink()
    (tmp_path / "goodput.json").mkdir()
    (tmp_path / "metrics.jsonl").write_text("garbage\n")
    sink = attempt(tmp_path, Clocks(), 1, first_step=0)
    sink.write(1, {"train/loss": 2.0})
    sink.close()


def test_the_summary_names_what_matters() -> None:
    buckets = dict.fromkeys(BUCKETS, 0.0) | {"useful_steps": 75.0, "down": 25.0}
    assert useful_share(buckets) == 0.75
    assert summary(buckets, num_attempts=2) == (
        "goodput of 00:01:40 in 2 attempt(s): useful_steps 75.0%  down 25.0%"
    )


def test_the_start_of_this_process_lies_before_now() -> None:
    import time

    now = time.time()
    assert now - 24 * 3600 < process_start(now) < now
