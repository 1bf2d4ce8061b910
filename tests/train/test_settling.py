"""Outcomes are read a step late, and nothing but the time of reading changes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from glm_dist.optim.flat_adamw import FlatAdamW
from glm_dist.optim.flat_step import FlatStep
from tests.ranks import run_ranks
from tests.train.jobs import make_files
from tests.train.test_loop import run_poisoned

STEPS = 9
BAD_STEP = 4
OPTIONS = [
    f"run.steps={STEPS}",
    f"lr_schedule.decay_steps={STEPS}",
    "lr_schedule.warmup_share=0.34",
    "evaluation.interval=0",
    "checkpoint.background=false",
    "stability.max_interventions=3",
]
"""A schedule in which the update after a dropped one has another rate than without the drop."""

Events = list[tuple[str, int]]


def watched_run(
    overrides: list[str], log_interval: int
) -> tuple[Events, list[npt.NDArray[np.float32]], int]:
    """When steps are queued and settled, the final weights, and the skipped steps."""
    order: Events = []
    step, settle = FlatAdamW.step, FlatStep.settle
    numbers: dict[int, int] = {}

    def watched_step(self, *arguments):
        pending = step(self, *arguments)
        numbers[id(pending)] = len(numbers) + 1
        kept.append(pending)  # ids stay unique
        order.append(("queued", len(numbers)))
        return pending

    def watched_settle(self):
        if not self.is_settled:
            order.append(("settled", numbers[id(self)]))
        return settle(self)

    kept: list[FlatStep] = []
    FlatAdamW.step, FlatStep.settle = watched_step, watched_settle
    try:
        interval = f"observe.log_interval={log_interval}"
        _, _, end, engine = run_poisoned([*overrides, interval], BAD_STEP, f"run{log_interval}")
    finally:
        FlatAdamW.step, FlatStep.settle = step, settle
    assert end == "finished", end
    weights = [shard.parameter.detach().numpy() for shard in engine.shards]
    return order, weights, engine.zero.skipped_steps


def both_ways(overrides: list[str]) -> list[tuple[Events, list[npt.NDArray[np.float32]], int]]:
    return [watched_run(overrides, log_interval) for log_interval in (1, 100)]


@pytest.mark.parametrize("reaction", ["skip", "rewind"])
def test_a_late_reading_changes_no_bit(reaction: str, tmp_path: Path) -> None:
    overrides = [
        *make_files(tmp_path),
        *OPTIONS,
        f"stability.on_non_finite={reaction}",
        # Steps 2, 4 and so on settle at once, because they are saved, or 3 and 6.
        f"checkpoint.interval={3 if reaction == 'rewind' else 0}",
    ]

    ((at_once, late),) = run_ranks(both_ways, overrides, world_size=1)

    assert at_once[0] == [
        (kind, step)
        for step in range(1, len(at_once[0]) // 2 + 1)
        for kind in ("queued", "settled")
    ]
    assert late[0] != at_once[0]
    assert late[2] == at_once[2]
    for expected, found in zip(at_once[1], late[1], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_step_is_settled_after_the_next_one_was_queued(tmp_path: Path) -> None:
    overrides = [*make_files(tmp_path), *OPTIONS, "stability.on_non_finite=skip"]
    overrides.append("checkpoint.interval=7")

    ((order, _, skipped),) = run_ranks(watched_run, overrides, 100, world_size=1)

    assert skipped == 1
    assert order == [
        ("queued", 1),
        ("settled", 1),  # recorded
        ("queued", 2),
        ("queued", 3),
        ("settled", 2),
        ("queued", 4),
        ("settled", 3),
        ("queued", 5),
        ("settled", 4),
        ("settled", 5),  # after a dropped step the younger one is waited for
        ("queued", 6),
        ("queued", 7),
        ("settled", 6),
        ("settled", 7),  # saved
        ("queued", 8),
        ("queued", 9),
        ("settled", 8),
        ("settled", 9),  # the last one
    ]
