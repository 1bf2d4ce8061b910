"""Console output of a job: a progress bar on a terminal, aligned lines elsewhere.

Lines, validations and events go through the log, so they have time and rank, are readable in a
batch system's output, and are in the rank's log file as well.
"""

import logging
import math
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from glm_dist.observe.metrics import (
    EPOCHS,
    ETA_SECONDS,
    GRAD_NORM,
    HFU,
    LEARNING_RATE,
    MFU,
    SAVE_SHARE,
    TOKENS_PER_SECOND,
    TRAIN_LOSS,
    TRAIN_OBJECTIVE,
    USEFUL_TFLOPS,
    VALID,
    VALID_LOSS,
    VALID_TASK,
    WAIT_SHARE,
)
from glm_dist.observe.phases import DATA

log = logging.getLogger(__name__)

_COLUMNS = (
    (TRAIN_LOSS, "loss", "{:7.4f}"),
    (GRAD_NORM, "norm", "{:7.3f}"),
    (LEARNING_RATE, "lr", "{:.2e}"),
    (TOKENS_PER_SECOND, "tokens/s", "{:9,.0f}"),
    (USEFUL_TFLOPS, "TFLOP/s", "{:7.3g}"),
    (MFU, "mfu", "{:5.1%}"),
    (HFU, "hfu", "{:5.1%}"),
)

_STALLS = ((WAIT_SHARE + DATA, "data wait"), (SAVE_SHARE, "save stall"))
_MIN_STALL = 0.01
"""Smaller shares of time are not worth the room."""

_ROUNDING = 1e-9
"""Passes over a corpus are quotients; this much above a full pass is no new one."""

_LOGGED = ("checkpoint_failed", "upload_failed")
"""Events that are logged as errors where they happen."""


class ConsoleSink:
    """Sink for the console; see ``MetricSink``."""

    def __init__(
        self, console: Console, *, first_step: int, last_step: int, progress_bar: bool
    ) -> None:
        """Open the progress bar, if wanted.

        Args:
            console: Console of ``setup_logging``, so that lines do not break the bar.
            first_step: Steps done before.
            last_step: Step at which the run ends.
            progress_bar: Show a bar; ignored if the console is no terminal.
        """
        self._last_step = last_step
        self._width = len(str(last_step))
        self._objectives: dict[str, str] = {}
        # A resumed run says nothing about the epochs that it began before.
        self._epochs: dict[str, int] | None = {} if first_step == 0 else None
        self._bar: Progress | None = None
        if progress_bar and console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]step"),
                MofNCompleteColumn(table_column=Column(min_width=2 * self._width + 1)),
                BarColumn(bar_width=None),  # the rest of the line
                TextColumn("{task.fields[summary]}", table_column=Column(no_wrap=True)),
                console=console,
                expand=True,
                refresh_per_second=2,
            )
            self._task = self._bar.add_task(
                "training", total=last_step, completed=first_step, summary=""
            )
            self._bar.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show training metrics as bar or line, validation losses as a line."""
        losses = {n.removeprefix(VALID_LOSS): x for n, x in values.items() if VALID_LOSS in n}
        corpora = dict.fromkeys(name.partition("/")[2] for name in losses)  # "": all together
        for corpus in corpora:
            shown = "  ".join(
                f"{name.partition('/')[0]} {loss:.4f}"
                for name, loss in losses.items()
                if name.partition("/")[2] == corpus
            )
            self._line(step, f"validation  {shown}{f'  ({corpus})' if corpus else ''}")
        if of_task := _metrics_of_task(values):
            shown = "  ".join(f"{name} {value:.4f}" for name, value in of_task.items())
            self._line(step, f"validation  {shown}")
        self._show_epochs(step, values)
        summary = "  ".join(filter(None, (summarize(values), *self._tail(values))))
        if not summary:
            return
        if self._bar is None:
            self._line(step, summary)
        else:
            self._bar.update(self._task, completed=step, summary=" ".join(summary.split()))

    def event(self, step: int, kind: str, details: Mapping[str, str | float]) -> None:
        """Show one line, unless the log has it as an error."""
        if kind in _LOGGED:
            return
        shown = "  ".join(f"{name}={value}" for name, value in details.items())
        self._line(step, f"{kind}  {shown}".rstrip())

    def close(self) -> None:
        """Stop the bar and release the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def _show_epochs(self, step: int, values: Mapping[str, float]) -> None:
        """Show a line for each corpus that has begun another pass since the last record."""
        epochs = {
            name.removeprefix(EPOCHS): max(math.ceil(passes - _ROUNDING), 1)
            for name, passes in values.items()
            if name.startswith(EPOCHS)
        }
        if not epochs:
            return
        for corpus, epoch in epochs.items():
            if self._epochs is not None and epoch > self._epochs.get(corpus, 1):
                self._line(step, f"epoch {epoch} of {corpus} began")
        self._epochs = epochs

    def _tail(self, values: Mapping[str, float]) -> list[str]:
        """Format what not every line has: losses by objective, and stalls.

        An objective that was seen once keeps its column; without rows in a record it has a dash.
        """
        if TRAIN_LOSS not in values:
            return []
        self._objectives |= {
            name: name.removeprefix(TRAIN_OBJECTIVE)
            for name in values
            if name.startswith(TRAIN_OBJECTIVE)
        }
        cells = []
        if len(self._objectives) > 1:  # the loss of a single one is the loss
            for name, objective in self._objectives.items():
                loss = f"{values[name]:4.2f}" if name in values else f"{'-':>4}"
                cells.append(f"{objective} {loss}")
        stalls = [(label, values.get(name, 0.0)) for name, label in _STALLS]
        return cells + [f"{label} {share:.0%}" for label, share in stalls if share >= _MIN_STALL]

    def _line(self, step: int, text: str) -> None:
        log.info("step %*d/%d  %s", self._width, step, self._last_step, text)


def _metrics_of_task(values: Mapping[str, float]) -> dict[str, float]:
    return {
        name.removeprefix(VALID): value
        for name, value in values.items()
        if name.startswith(VALID) and not name.startswith((VALID_LOSS, VALID_TASK))
    }


def summarize(values: Mapping[str, float]) -> str:
    """Format the main metrics in columns of fixed width; missing ones are left out."""
    cells = [
        f"{label} {form.format(values[name])}"
        for name, label, form in _COLUMNS
        if name in values and not (name == USEFUL_TFLOPS and MFU in values)
    ]
    if ETA_SECONDS in values:
        cells.append(f"eta {format_duration(values[ETA_SECONDS]):>8}")
    return "  ".join(cells)


def format_duration(seconds: float) -> str:
    """Format hours, minutes and seconds, with days if there are any: ``2d 03:04:05``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hour:02d}:{minute:02d}:{second:02d}"
