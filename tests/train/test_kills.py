"""Random kills in every layout: nothing reported is lost, and the end is that of no kill at all."""

import os
import time
from pathlib import Path

import pytest

from glm_dist.cli.main import main_train
from tests.ranks import run_programs
from tests.train.jobs import make_files, rank_environments
from tests.train.kills import STEPS, Campaign, check_end, kill_until_done

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


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(
    layout: str, tmp_path: Path
) -> None:
    overrides = [
        *make_files(tmp_path),
        *LAYOUTS[layout],
        f"run.steps={STEPS}",
        f"lr_schedule.decay_steps={STEPS}",
        "evaluation.interval=0",
    ]
    campaign = Campaign()
    typed = [*overrides, "run.name=whole", "checkpoint.interval=7"]
    started = time.monotonic()
    for done in run_programs(main_train, ["train.py", *typed], rank_environments(2)):
        assert done.returncode == 0, done.stderr
    whole_seconds = time.monotonic() - started

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

    print(f"{layout}: {dict(campaign.counts)}")
    assert not campaign.problems, "\n".join(campaign.problems)
