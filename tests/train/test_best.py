"""The best checkpoint is kept and named, also after kills; a run that no longer improves ends."""

import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from glm_dist.checkpoint.best import Best, read_best, write_best
from glm_dist.checkpoint.folders import list_steps, step_name
from glm_dist.checkpoint.load import choose_checkpoint
from glm_dist.checkpoint.manifest import Json
from glm_dist.checkpoint.remote import open_store
from glm_dist.checkpoint.retention import Upkeep
from glm_dist.config.load import load_config
from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.observe.events import read_events
from glm_dist.observe.metrics_file import METRICS_FILE, read_records
from glm_dist.observe.sinks import SinkGroup
from glm_dist.train.best import BEST, BestTracker
from glm_dist.train.workload import Selection
from tests.checkpoint.stores import new_url
from tests.ranks import run_programs
from tests.tasks.test_finetune import CHOICES, record, typed, write_task
from tests.train.jobs import (
    clean_environment,
    make_files,
    rank_environments,
    with_python,
    with_ranks,
)
from tests.train.kill_points import Point
from tests.train.kills import STEPS, Campaign, check_end, kill_at, kill_until_done
from tests.train.toy_task import PEAK, STOP_IN, toy_program

METRIC = "valid/task/score"
VALIDATED = ["evaluation.interval=5", "checkpoint.interval=4", "checkpoint.keep_last=1"]
"""Validations of steps 5, 10 and 14; the best is not one of the steps 4, 8 and 12."""


class Tracker(BestTracker):
    """A tracker of a run whose checkpoints are empty folders."""

    def __init__(
        self, folder: Path, *, patience: int = 0, larger: bool = True, **saved: Json
    ) -> None:
        config = load_config(["experiment=tiny", "evaluation.interval=2", "checkpoint.interval=4"])
        self.folder, self.upkeep = folder, Upkeep()
        super().__init__(
            replace(
                config,
                checkpoint=replace(config.checkpoint, keep_best=True),
                task=replace(config.task, patience=patience),
            ),
            Selection(METRIC, larger_is_better=larger),
            folder,
            upkeep=self.upkeep,
            sink=SinkGroup(),
            saved=saved,
            ignores=None,
        )

    def validate(self, step: int, value: float) -> bool:
        """Take a value, and save the step if that is asked for."""
        self.observe(step, {METRIC: value})
        if not self.wants(step):
            return False
        save(self.folder, step)
        self.saved(step)
        return True


def save(folder: Path, step: int) -> None:
    path = folder / step_name(step)
    path.mkdir()
    (path / "manifest.json").write_text("{}")


def test_a_better_validation_is_saved_and_named_and_the_one_before_may_go(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)

    assert [tracker.validate(step, v) for step, v in ((2, 0.5), (4, 0.5), (6, 0.7))] == [
        *(True, False, True),
    ]

    assert read_best(tmp_path) == Best(6, METRIC, 0.7)
    assert [tracker.upkeep.stays(step) for step in (2, 4, 6)] == [False, False, True]


def test_the_smallest_loss_is_the_best_and_no_nan_ever_is(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, larger=False)

    for step, loss in ((2, float("nan")), (4, 0.5), (6, 0.7), (8, 0.4)):
        tracker.validate(step, loss)

    assert read_best(tmp_path) == Best(8, METRIC, 0.4)


def test_until_a_better_checkpoint_is_complete_the_one_before_stays(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.validate(2, 0.5)

    tracker.observe(4, {METRIC: 0.7})  # its save is in flight
    in_flight = read_best(tmp_path), [tracker.upkeep.stays(step) for step in (2, 4)]
    tracker.failed(4)

    assert in_flight == (Best(2, METRIC, 0.5), [True, True])
    assert [tracker.upkeep.stays(step) for step in (2, 4)] == [True, False]
    assert tracker.validate(6, 0.6)  # better than any checkpoint that there is
    assert read_best(tmp_path) == Best(6, METRIC, 0.6)


def test_going_back_restores_the_best_of_then_if_it_is_still_there(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.validate(2, 0.5)
    then = tracker.memory()
    tracker.validate(4, 0.9)

    tracker.restore(then)
    assert read_best(tmp_path) == Best(2, METRIC, 0.5)
    assert tracker.upkeep.best == {2}

    tracker.restore({BEST: {**then[BEST], "step": 1}})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match=r"has no best\.json"):
        read_best(tmp_path)
    assert tracker.validate(6, 0.1)


def test_patience_counts_validations_since_the_best_over_restarts(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, patience=2)
    tracker.validate(2, 0.5)
    tracker.validate(4, 0.4)
    again = Tracker(tmp_path, patience=2, **tracker.memory())
    assert not again.is_exhausted

    again.validate(6, 0.5)  # no better, only equal

    assert again.is_exhausted
    assert again.reason == "2 validations without a better valid/task/score than 0.5 of step 2"
    assert not Tracker(tmp_path, patience=3, **again.memory()).is_exhausted


def test_a_validation_that_a_stop_prevented_is_missed(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    assert [tracker.lacks(step) for step in (0, 1, 2)] == [False, False, True]
    tracker.validate(2, 0.5)
    assert [tracker.lacks(step) for step in (2, 3, 4)] == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["checkpoint.keep_best=true", "evaluation.interval=0"], "evaluation.interval"),
        (["task.patience=3", "evaluation.interval=0"], "evaluation.interval"),
        (["checkpoint.keep_best=true", "checkpoint.interval=0"], "checkpoint.interval"),
    ],
)
def test_nothing_is_the_best_without_validations_and_checkpoints(
    changes: list[str], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["experiment=tiny", *changes])
    assert caught.value.key == key


def test_a_damaged_pointer_is_named(tmp_path: Path) -> None:
    write_best(tmp_path, Best(4, METRIC, 0.5))
    (tmp_path / "best.json").write_text('{"step": 4')
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        choose_checkpoint(tmp_path, "best")


def overrides_of(folder: Path, *more: str) -> list[str]:
    """A run of ``STEPS`` steps that keeps its best checkpoint."""
    return [
        *make_files(folder),
        *VALIDATED,
        f"run.steps={STEPS}",
        f"lr_schedule.decay_steps={STEPS}",
        "checkpoint.keep_best=true",
        "parallel=single",
        *more,
    ]


def train(overrides: list[str], *, ranks: int = 1, status: int = 0, **variables: str) -> str:
    """Train on the toy task; return what rank 0 logs."""
    environments = rank_environments(ranks) if ranks > 1 else [clean_environment()]
    environments = [each | variables for each in environments]
    done = run_programs(toy_program, ["train.py", *overrides], environments)
    assert [each.returncode for each in done] == [status] * ranks, done[0].stderr
    return done[0].stderr


def steps_of(run: Path) -> list[int]:
    return [number for number, _ in list_steps(run / "checkpoints")]


@pytest.fixture(scope="module")
def finetuning(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a finetuning that soon learns its few examples by heart: the loss rises."""
    folder = tmp_path_factory.mktemp("finetuning")
    rng = random.Random(0)
    for split, count in (("train", 6), ("valid", 9), ("test", 3)):
        lines = [json.dumps(record(rng)) + "\n" for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    write_task(folder, "choices", CHOICES)
    done = with_python([*make_files(folder), "run.name=a", "parallel=single", "run.steps=1"])
    assert done.returncode == 0, done.stderr
    return [
        *typed(folder, "choices", "unnamed", *VALIDATED),
        f"run.steps={STEPS}",
        "parallel=dp2",
        "task.select=loss",
        "model.hidden_dropout=0.1",
        "optimizer.learning_rate=1e-2",
        "observe.log_interval=1",
        "checkpoint.background=true",
    ]


@pytest.mark.parametrize(
    "point",
    [
        Point("train.best", "write_best", "before", 1),
        pytest.param(Point("train.best", "write_best", "after", 1), marks=pytest.mark.slow),
        pytest.param(Point("checkpoint.save", "publish", "before", 2), marks=pytest.mark.slow),
        pytest.param(Point("checkpoint.save", "publish", "after", 4), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.timeout(300)
def test_a_killed_finetune_ends_with_the_same_weights_and_the_same_best(
    point: Point, finetuning: list[str], tmp_path: Path
) -> None:
    overrides = [*finetuning, f"paths.runs={tmp_path}"]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    for done in with_ranks([*overrides, "run.name=whole"], 2):
        assert done.returncode == 0, done.stderr

    campaign = Campaign()
    campaign.problems += kill_at(point, 0, [*overrides, "run.name=killed"], run, with_others=True)

    check_end(run, whole, campaign)
    assert not campaign.problems, "\n".join(campaign.problems)
    best = read_best(run / "checkpoints")
    assert best == read_best(whole / "checkpoints")
    # Not a multiple of checkpoint.interval, and older than the two newest, which always stay.
    assert best.step == 5
    assert steps_of(run) == steps_of(whole) == [14, 12, 5]
    results = [json.loads((each / "results.json").read_text()) for each in (run, whole)]
    assert results[0]["valid"] == results[1]["valid"]
    assert (results[0]["step"], results[0]["chosen_by"]) == (5, "best")


def test_a_validation_that_a_stop_cut_short_is_made_up_for(tmp_path: Path) -> None:
    overrides = overrides_of(tmp_path, "run.name=stopped", "run.steps=8")
    run = tmp_path / "runs" / "stopped"

    train(overrides, status=75, **{STOP_IN: str(PEAK)})
    assert not (run / "checkpoints" / "best.json").exists()
    train(overrides)

    assert read_best(run / "checkpoints") == Best(PEAK, METRIC, 0.0)
    assert PEAK in steps_of(run)


def test_a_store_keeps_the_best_and_gives_it_back(tmp_path: Path) -> None:
    url = new_url(tmp_path / "store")
    # Without a save behind training no upload is overtaken by the next one.
    more = [f"checkpoint.url={url}", "checkpoint.background=false"]
    overrides = overrides_of(tmp_path, "run.name=lost", *more)
    run = tmp_path / "runs" / "lost"
    train([*overrides, "run.steps=10"])
    shutil.rmtree(run)

    train(overrides)

    assert steps_of(run) == [14, 12, PEAK]
    assert read_best(run / "checkpoints") == Best(PEAK, METRIC, 0.0)
    assert open_store(url, "lost").steps()[0] == [14, 12, PEAK]


def test_a_run_without_improvement_is_finished_early(tmp_path: Path) -> None:
    overrides = overrides_of(
        tmp_path, "run.name=patient", "evaluation.interval=3", "task.patience=2"
    )
    run = tmp_path / "runs" / "patient"

    # Scores of steps 3, 6, 9 and 12: -2, -1, -4 and -7.
    stderr = train(overrides)
    reason = "2 validations without a better valid/task/score than -1 of step 6"
    assert f"finished early step=12 reason={reason}" in stderr
    assert steps_of(run)[0] == 12
    assert read_best(run / "checkpoints").step == 6
    assert json.loads((run / "finished").read_text())["step"] == 12
    events = [(each["kind"], each["step"]) for each in read_events(run / "events.jsonl")]
    assert ("finished_early", 12) in events
    # Four examples a step, of three rows of 24 positions each.
    assert "rows_per_step=12" in stderr
    (speed, *_) = [each for each in read_records(run / METRICS_FILE) if each["step"] == 12]
    positions = speed["speed/tokens_per_second"] * speed["speed/seconds_per_step"]
    assert positions == pytest.approx(4 * 3 * 24)

    again = train(overrides)
    assert "finished early step=12" in again
    assert steps_of(run)[0] == 12

    train([*overrides, "task.patience=3"])
    assert steps_of(run)[0] == STEPS


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("background", ["true", "false"])
def test_killed_at_random_moments_a_finetune_keeps_its_best(
    background: str, tmp_path: Path
) -> None:
    overrides = overrides_of(
        tmp_path, "parallel=dp2", "zero=stage3", f"checkpoint.background={background}"
    )
    campaign = Campaign()
    started = time.monotonic()
    train([*overrides, "run.name=whole"], ranks=2)
    whole_seconds = time.monotonic() - started

    for number in range(3):
        name = f"run{number}"
        run = tmp_path / "runs" / name
        kill_until_done(
            [*overrides, f"run.name={name}"],
            run,
            seed=number,
            kills=1 + number,
            whole_seconds=whole_seconds,
            campaign=campaign,
            program=toy_program,
        )
        check_end(run, tmp_path / "runs" / "whole", campaign)
        best = read_best(run / "checkpoints")
        campaign.expect(best == Best(PEAK, METRIC, 0.0), f"{name}: {best}")
        campaign.expect(PEAK in steps_of(run), f"{name}: {steps_of(run)}")

    assert not campaign.problems, "\n".join(campaign.problems)
