"""Random kills in every layout: nothing reported is lost, and the end is that of no kill at all."""

import os
import shutil
import time
from pathlib import Path

import pytest

from glm_dist.cli.main import main_train
from tests.ranks import run_programs
from tests.train.jobs import make_files, rank_environments
from tests.train.kill_points import ON_EVERY_RANK, ON_THE_FIRST_RANK
from tests.train.kills import STEPS, Campaign, check_end, kill_at, kill_until_done

RUNS = int(os.environ.get("KILL_RUNS", "5"))
"""Runs for each layout; each is killed up to three times."""

LAYOUTS = {
    "dp2 zero0": ["parallel=dp2", "zero=stage0"],
    "dp2 zero1": ["parallel=dp2", "zero=stage1"],
    "dp2 zero2": ["parallel=dp2", "zero=stage2"],
    "dp2 zero3": ["parallel=dp2", "zero=stage3"],
    "dp2 zero3 offload": ["parallel=dp2", "zero=stage3", "zero.offload_optimizer=cpu"],
    "dp2 bf16": ["parallel=dp2", "zero=stage1", "precision=bf16"],
    "tp2": ["parallel=tp2"],
    "tp2 workers": ["parallel=tp2", "data.num_workers=2"],
    "pp2": ["parallel=pp2"],
}


NAMED = ["parallel=dp2", "zero=stage1", "checkpoint.interval=3", "checkpoint.keep_last=2"]


def overrides_of(folder: Path) -> list[str]:
    """A run of ``STEPS`` steps."""
    return [
        *make_files(folder),
        f"run.steps={STEPS}",
        f"lr_schedule.decay_steps={STEPS}",
        "evaluation.interval=0",
        # A rank killed before it has joined: only time tells the others.
        "watchdog.start_minutes=0.7",
    ]


def train(overrides: list[str]) -> float:
    """Train without a kill; return the seconds it took."""
    started = time.monotonic()
    for done in run_programs(main_train, ["train.py", *overrides], rank_environments(2)):
        assert done.returncode == 0, done.stderr
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("background", ["true", "false"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(
    layout: str, background: str, tmp_path: Path
) -> None:
    overrides = [*overrides_of(tmp_path), *LAYOUTS[layout], f"checkpoint.background={background}"]
    campaign = Campaign()
    train([*overrides, "run.name=whole", "checkpoint.interval=7"])
    # Only this one is timed: the first job of a session also starts the server of processes.
    whole_seconds = train([*overrides, "run.name=timed", "checkpoint.interval=1"])

    for number in range(RUNS):
        name = f"run{number}"
        kill_until_done(
            [*overrides, f"run.name={name}", f"checkpoint.interval={1 + number % 3}"],
            tmp_path / "runs" / name,
            seed=number,
            kills=1 + number % 3,
            whole_seconds=whole_seconds,
            campaign=campaign,
        )
        check_end(tmp_path / "runs" / name, tmp_path / "runs" / "whole", campaign)

    print(f"{layout} background={background}: {dict(campaign.counts)}")
    assert not campaign.problems, "\n".join(campaign.problems)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("background", ["true", "false"])
def test_killed_at_each_point_of_a_save_a_run_ends_as_if_it_had_not_been(
    background: str, tmp_path: Path
) -> None:
    overrides = [*overrides_of(tmp_path), *NAMED, f"checkpoint.background={background}"]
    train([*overrides, "run.name=whole"])
    cases = [(point, rank) for point in ON_EVERY_RANK for rank in (0, 1)]
    cases += [(point, 0) for point in ON_THE_FIRST_RANK]
    cases = [case for case in cases if background == "true" or "snapshot" not in case[0].module]
    problems = []
    for number, (point, rank) in enumerate(cases):
        for with_others in (True, False):
            name = f"run{number}{'all' if with_others else ''}"
            run, typed = tmp_path / "runs" / name, [*overrides, f"run.name={name}"]
            found = kill_at(point, rank, typed, run, with_others=with_others)
            campaign = Campaign()
            check_end(run, tmp_path / "runs" / "whole", campaign)
            problems += [f"{point} rank {rank}: {text}" for text in found + campaign.problems]
            shutil.rmtree(run)

    print(f"background={background}: {2 * len(cases)} kills at named points")
    assert not problems, "\n".join(problems)
