"""The watchdog's verdict by the reports that other ranks wrote before and after an alarm."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from glm_dist.parallel import watchdog as module
from glm_dist.parallel.progress import Deadlines, Progress, Report
from glm_dist.parallel.watchdog import Watchdog

DEADLINES = Deadlines(connect=60, first=4, floor=4, factor=10, timeout=1800)


class OfRankZero:
    """Reports in which rank 0 was deaf for a moment: of before the alarm, or renewed after it."""

    rings, is_judge, is_deaf = False, False, False

    def __init__(self, clock: list[float], *, renews: bool) -> None:
        self.clock, self.renews = clock, renews
        self.own: Report | None = None

    def publish(self, report: Report) -> None:
        self.own = report

    def raise_alarm(self) -> None:
        self.rings = self.is_judge = True

    def reports(self) -> dict[int, Report]:
        assert self.own is not None
        written = self.clock[0] if self.renews else -5.0
        last = replace(self.own, rank=0, answers=False, is_deaf=True, written=written, step=5)
        return {0: last, 1: self.own}


@pytest.mark.parametrize(
    ("renews", "says"), [(False, "does not answer"), (True, "has been in step 5")]
)
def test_a_rank_that_was_deaf_before_it_was_stopped_does_not_answer(
    renews: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "dump_stacks", lambda: None)
    clock = [0.0]
    progress = Progress(lambda: clock[0])
    progress.step = 6
    bulletin: Any = OfRankZero(clock, renews=renews)
    board: Any = SimpleNamespace(rank=1)
    watch = Watchdog(progress, DEADLINES, board=board, bulletin=bulletin, world_size=2)
    monkeypatch.setattr(watch, "_end", lambda text, *, speaks: said.append(text))
    monkeypatch.setattr(watch, "_arm", lambda now, remaining: None)

    progress.enter("step")
    for now in (0.0, 3.0, 100.0, 101.0, 103.0):
        clock[0] = now
        watch._tick(now)

    assert says in said[0], said
