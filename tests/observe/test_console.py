"""A watcher sees one aligned line a record, or a bar on a terminal."""

import io
import logging
import re
from pathlib import Path

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
        "step   20/1000  loss  9.8765  norm   1.500  lr 4.00e-04  tokens/s    12,346  eta 01:02:03"
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


def test_objectives_have_columns_and_stalls_follow_where_they_matter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    shown, _ = sink()
    objectives = {"train/loss_span": 9.104, "train/loss_document": 10.25}
    stalls = {"speed/wait_share_data": 0.0099, "speed/save_share": 0.124}
    shown.write(20, {**RECORD, "train/loss_span": 9.104})
    shown.write(30, {**RECORD, **objectives, "speed/wait_share_data": 0.01})
    shown.write(40, {**RECORD, "train/loss_span": 8.9, **stalls})
    main = "  loss  9.8765  norm   1.500  lr 4.00e-04  tokens/s    12,346  eta 01:02:03"
    assert lines(caplog) == [
        f"step   20/1000{main}",  # the only objective: its loss is the loss
        f"step   30/1000{main}  span 9.10  document 10.25  data wait 1%",
        f"step   40/1000{main}  span 8.90  document    -  save stall 12%",
    ]


def test_each_pass_over_a_corpus_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shown, _ = sink()
    for step, (books, wiki) in enumerate([(0.5, 0.25), (1.0, 0.5), (1.01, 0.51), (3.5, 0.6)]):
        shown.write(step, {"data/epochs_books": books, "data/epochs_wiki": wiki})
    assert lines(caplog) == [
        "step    2/1000  epoch 2 of books began",  # 1.0 passes end the first
        "step    3/1000  epoch 4 of books began",
    ]


def test_a_resumed_run_announces_only_the_passes_that_it_begins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    file = Console(file=io.StringIO())
    shown = ConsoleSink(file, first_step=500, last_step=1000, progress_bar=False)
    for step, passes in ((501, 4.5), (510, 4.9), (520, 5.1)):
        shown.write(step, {"data/epochs_books": passes})
    assert lines(caplog) == ["step  520/1000  epoch 6 of books began"]


LABELS = {
    "loss": "train/loss",
    "norm": "train/grad_norm",
    "lr": "train/learning_rate",
    "tokens/s": "speed/tokens_per_second",
    "TFLOP/s": "speed/useful_tflops_per_gpu",
    "eta": "speed/eta_seconds",
    "data wait": "speed/wait_share_data",
}


def test_the_readme_shows_lines_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    expected = re.findall(r"(?m)^step +\d+/4000  loss .*$", readme)
    shown = ConsoleSink(Console(), first_step=0, last_step=4000, progress_bar=False)
    for line in expected:
        values = {}
        for label, value in re.findall(r"([a-zA-Z_/ ]+?) +([\d.,:e+-]+%?)(?:  |$)", line[14:]):
            *parts, number = value.replace(",", "").split(":")
            seconds = sum(int(part) * unit for part, unit in zip(parts, (3600, 60), strict=False))
            name = LABELS.get(label.strip(), f"train/loss_{label.strip()}")
            factor = 0.01 if number.endswith("%") else 1.0
            values[name] = seconds + float(number.rstrip("%")) * factor
        shown.write(int(line[5:9]), values)
    assert lines(caplog) == expected
    assert len(expected) == 3


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
