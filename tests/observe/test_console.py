"""A watcher sees one aligned line a record, or a bar on a terminal."""

import io
import logging

import pytest
from rich.console import Console

from glm_dist.observe.console import ConsoleSink, format_duration

RECORD = {
    "train/loss": 9.87654,
    "train/grad_norm": 1.5,
    "train/learning_rate": 0.0004,
    "speed/tokens_per_second": 12345.6,
    "speed/eta_seconds": 3723.0,
    "memory/peak_gib": 2.0,
}


def sink(*, terminal: bool = False, progress_bar: bool = True) -> tuple[ConsoleSink, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    shown = ConsoleSink(console, first_step=0, last_step=1000, progress_bar=progress_bar)
    return shown, file


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "glm_dist.observe.console"]


def test_without_a_terminal_a_record_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown, file = sink()
    shown.write(20, RECORD)
    shown.close()
    assert lines(caplog) == [
        "step   20/1000  loss   9.8765  norm    1.500  lr  4.00e-04  tokens/s    12,346"
        "  eta 01:02:03"
    ]
    assert file.getvalue() == ""


def test_speed_is_a_share_of_the_peak_where_that_is_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    shown, _ = sink()
    speed = {"speed/tokens_per_second": 12345.6, "speed/useful_tflops_per_gpu": 0.0341}
    shown.write(20, speed)
    shown.write(40, speed | {"speed/mfu": 0.451, "speed/hfu": 0.5})
    assert lines(caplog) == [
        "step   20/1000  tokens/s    12,346  TFLOP/s  0.0341",
        "step   40/1000  tokens/s    12,346  mfu 45.1%  hfu 50.0%",
    ]


def test_lines_of_different_sizes_stay_aligned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown, _ = sink()
    shown.write(1, {**RECORD, "train/loss": 10.5, "train/grad_norm": 123.4})
    shown.write(1000, {**RECORD, "speed/tokens_per_second": 5.0})
    first, second = lines(caplog)
    assert len(first) == len(second)


def test_validation_losses_are_a_line_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown, _ = sink(terminal=True)
    shown.write(20, {"valid/loss_span": 5.25, "valid/loss_document": 6.0})
    shown.close()
    assert lines(caplog) == ["step   20/1000  validation  span 5.2500  document 6.0000"]


def test_events_are_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown, _ = sink()
    shown.event(500, "checkpoint", {"path": "runs/a/step_0000500", "seconds": 1.5})
    assert lines(caplog) == ["step  500/1000  checkpoint  path=runs/a/step_0000500  seconds=1.5"]


def test_a_terminal_gets_a_bar_instead_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown, file = sink(terminal=True)
    shown.write(20, RECORD)
    shown.close()
    assert lines(caplog) == []
    assert "20/1000" in file.getvalue()
    assert "loss 9.8765" in file.getvalue()
    assert "eta 01:02:03" in file.getvalue()


def test_the_bar_gives_way_to_the_numbers_on_a_narrow_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80)
    shown = ConsoleSink(console, first_step=0, last_step=150_000, progress_bar=True)
    shown.write(149_999, RECORD)
    shown.close()
    assert "loss 9.8765 norm 1.500 lr 4.00e-04" in file.getvalue()
    assert "149999/150000" in file.getvalue()


def test_a_bar_can_be_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown, _ = sink(terminal=True, progress_bar=False)
    shown.write(20, RECORD)
    assert len(lines(caplog)) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00:00"), (59.6, "00:01:00"), (86399, "23:59:59"), (183845, "2d 03:04:05")],
)
def test_durations_read_as_clock_times(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
