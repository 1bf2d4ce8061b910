"""The file of events: one line each, over attempts, repaired after a torn write."""

from pathlib import Path

from glm_dist.observe.events import EventsSink, read_events


def sink(path: Path, attempt: int, first_step: int) -> EventsSink:
    return EventsSink(path, attempt=attempt, first_step=first_step, clock=lambda: 1.5)


def test_every_event_has_step_kind_attempt_time_and_details(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = sink(path, 1, 0)
    first.write(1, {"train/loss": 2.0})
    first.event(3, "spike", {"value": float("inf"), "rows": "8-11"})
    with path.open("ab") as stream:
        stream.write(b'{"step": 4, "ki')  # killed in the middle of a line
    sink(path, 2, 2).event(3, "skipped_rows", {"rows": "8-11"})

    assert read_events(path) == [
        {"step": 0, "kind": "started", "attempt": 1, "time": 1.5, "details": {}},
        {
            "step": 3,
            "kind": "spike",
            "attempt": 1,
            "time": 1.5,
            "details": {"value": "Infinity", "rows": "8-11"},
        },
        {"step": 2, "kind": "started", "attempt": 2, "time": 1.5, "details": {}},
        {
            "step": 3,
            "kind": "skipped_rows",
            "attempt": 2,
            "time": 1.5,
            "details": {"rows": "8-11"},
        },
    ]


def test_a_folder_that_disappears_does_not_end_training(tmp_path: Path) -> None:
    events = sink(tmp_path / "events.jsonl", 1, 0)
    (tmp_path / "events.jsonl").unlink()
    tmp_path.rmdir()
    events.event(1, "checkpoint", {"path": "somewhere"})
