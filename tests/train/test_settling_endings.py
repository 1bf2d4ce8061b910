"""Endings of a run that find a step whose outcome has not been read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from glm_dist.config.load import load_config
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.errors import TrainingError
from glm_dist.observe.metrics import LEARNING_RATE, TRAIN_LOSS
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.job import build_engine
from glm_dist.train.loop import LoopContext, train
from glm_dist.train.preemption import StopRequest
from glm_dist.train.rows import RunRows
from glm_dist.train.same_run import stability_memory
from glm_dist.train.start import starting_point
from glm_dist.train.workload import open_pretraining
from tests.ranks import run_ranks
from tests.train.jobs import make_files
from tests.train.test_loop import Records
from tests.train.test_precision import poison

SIGTERM = 15


class BadReads(RunRows):
    """Rows of a run; after some of the reads a weight has an infinite gradient."""

    def poison(self, engine: TrainingEngine, reads: Sequence[int]) -> "BadReads":
        """Choose the reads, counted from 1; a rewind reads other rows."""
        self._engine, self._bad, self._reads = engine, set(reads), 0
        self._heal: Callable[[], None] = lambda: None
        return self

    def __next__(self) -> Sequence[MicroBatch]:
        self._heal()
        self._reads += 1
        self._heal = poison(self._engine) if self._reads in self._bad else lambda: None
        return super().__next__()


class StopsAfter(StopRequest):
    """A stop that is agreed in the vote of one step; 0: never."""

    votes, stop_at = 0, 0

    def agreed(self, *, step_done: bool = True) -> bool:
        self.votes += step_done
        if self.stop_at and self.votes >= self.stop_at:
            self._agreed = SIGTERM
        return self.is_agreed


@dataclass(frozen=True)
class Ended:
    """A run after its end."""

    end: str
    events: list[str]
    saved: list[str]
    losses: dict[int, float]
    """By the steps of the records that have one."""
    rates: dict[int, float]
    """Learning rates, by the steps of the records."""
    skipped: int
    counters: object
    """Counts of updates, and the loss scale with its memory."""
    weights: list[npt.NDArray[np.float32]]


def run(overrides: list[str], bad_reads: Sequence[int], stop_at: int = 0) -> Ended:
    """Train with bad steps, from the newest checkpoint if there is one, perhaps to a stop."""
    enable_cpu()
    config = load_config(overrides)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    groups, device = build_groups(Layout(1, 1, 1), timedelta(seconds=60)), torch.device("cpu")
    engine = build_engine(config, groups, device=device, world_size=1)
    workload, sink, request = open_pretraining(config), Records(), StopsAfter()
    request.stop_at = stop_at
    start = starting_point(config, engine, {"data": workload.fingerprint()})
    rows = BadReads(config, workload.rows, groups, done=start.step)
    context = LoopContext(
        config=config,
        engine=engine,
        rows=rows.poison(engine, bad_reads),
        workload=workload,
        stop_request=request,
        sink=sink,
        checkpoints=config.run_dir / "checkpoints",
        identity={"data": workload.fingerprint()},
        device=device,
        saved=stability_memory(start.extra),
        extra=start.extra,
    )
    try:
        end = "finished" if train(context, first_step=start.step) else "stopped"
    except TrainingError as error:
        end = str(error).partition("\n")[0]
    saved = sorted(path.name for path in context.checkpoints.glob("step_*"))
    losses = {step: r[TRAIN_LOSS] for step, r in sink.by_step.items() if TRAIN_LOSS in r}
    rates = {step: record[LEARNING_RATE] for step, record in sink.by_step.items()}
    weights = [shard.parameter.detach().float().numpy().copy() for shard in engine.shards]
    zero = engine.zero
    return Ended(
        end, sink.events, saved, losses, rates, zero.skipped_steps, zero.counters(), weights
    )


def options(folder: Path, *more: str) -> list[str]:
    """Nine steps, in which every update has another rate."""
    return [
        *make_files(folder),
        "run.name=run",
        "run.steps=9",
        "lr_schedule.decay_steps=9",
        "lr_schedule.warmup_share=0.34",
        "evaluation.interval=0",
        "checkpoint.background=false",
        "stability.max_interventions=3",
        *more,
    ]


@pytest.mark.parametrize(
    ("reaction", "end", "saved"),
    [
        ("stop", "The gradient norm is inf in step 4; no weight was changed.", []),
        ("skip", "stopped", ["step_0000004"]),
    ],
)
def test_a_stop_settles_its_step_before_it_saves(
    reaction: str, end: str, saved: list[str], tmp_path: Path
) -> None:
    overrides = options(
        tmp_path,
        f"stability.on_non_finite={reaction}",
        "checkpoint.interval=7",
        "observe.log_interval=100",
    )

    (found,) = run_ranks(run, overrides, [4], 4, world_size=1)

    assert (found.end, found.saved, found.skipped) == (end, saved, 1)
    assert "non_finite" in found.events


def test_a_rewind_gives_up_the_younger_step(tmp_path: Path) -> None:
    overrides = options(
        tmp_path,
        "stability.on_non_finite=rewind",
        "checkpoint.interval=3",
        "observe.log_interval=100",
    )

    (found,) = run_ranks(run, overrides, [4, 5], world_size=1)

    assert found.end == "finished"
    # The younger step is bad as well, and nobody judges it.
    assert found.events.count("skipped_rows") == 1


def test_two_bad_steps_in_a_row_are_both_skipped(tmp_path: Path) -> None:
    runs = []
    for interval in (1, 5):
        folder = tmp_path / str(interval)
        folder.mkdir()
        overrides = options(
            folder,
            "stability.on_non_finite=skip",
            "checkpoint.interval=0",
            f"observe.log_interval={interval}",
        )
        runs += run_ranks(run, overrides, [4, 5], world_size=1)

    at_once, late = runs
    assert (late.end, late.events, late.skipped) == (at_once.end, at_once.events, 2)
    for expected, found in zip(at_once.weights, late.weights, strict=True):
        np.testing.assert_array_equal(found, expected)
    # The losses of the two bad steps are finite, and count as little as their updates.
    losses = at_once.losses
    assert list(losses) == [1, 2, 3, 6, 7, 8, 9]
    assert list(late.losses) == [1, 5, 9]
    assert late.losses[5] == pytest.approx((losses[2] + losses[3]) / 2, rel=1e-12)
    # Step 5 was queued before it was known that step 4 is dropped.
    assert late.rates == {step: at_once.rates[step] for step in (1, 5, 9)}


SAVED = 3


def whole_and_resumed(whole: list[str], parts: list[str], bad_step: int) -> tuple[Ended, Ended]:
    """Train without a stop; and to the checkpoint, then on from it in another engine."""
    uninterrupted = run(whole, [bad_step])
    before = [bad_step] if bad_step <= SAVED else []
    stopped = run(parts, before, stop_at=SAVED)
    assert (stopped.end, stopped.saved) == ("stopped", [f"step_{SAVED:07}"])
    return uninterrupted, run(parts, [] if before else [bad_step - SAVED])


@pytest.mark.parametrize(
    ("precision", "bad_step", "log_interval"),
    [("fp32", SAVED, 1), ("fp32", SAVED + 1, 100), ("fp16", SAVED, 100), ("fp16", SAVED + 1, 1)],
)
def test_a_step_dropped_beside_a_save_is_resumed_to_the_bit(
    precision: str, bad_step: int, log_interval: int, tmp_path: Path
) -> None:
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    more = [f"precision={precision}", f"observe.log_interval={log_interval}"]
    more += ["checkpoint.interval=7", "stability.on_non_finite=skip"]
    overrides = [options(folder, *more) for folder in folders]

    ((whole, resumed),) = run_ranks(whole_and_resumed, *overrides, bad_step, world_size=1)

    assert (resumed.end, resumed.skipped) == ("finished", 1)
    assert resumed.counters == whole.counters
    for expected, found in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(found, expected)
    if log_interval == 1:  # otherwise a record averages over the steps since the one before
        later = range(SAVED + 1, 10)
        assert [resumed.rates[step] for step in later] == [whole.rates[step] for step in later]
        assert resumed.losses == {s: x for s, x in whole.losses.items() if s > SAVED}
