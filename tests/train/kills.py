"""Kill ranks of a training job at random moments until it finishes, and keep count.

What must hold: a checkpoint that was reported before a kill is there and verified after it, every
start resumes from the newest one, and the end state is bit-equal to that of a run without kills.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.cli.main import main_train
from glm_dist.observe.metrics_file import final_records, read_records
from tests.ranks import Programs, started_programs
from tests.train.jobs import rank_environments
from tests.train.kill_points import POINT, Point, killed_program
from tests.train.test_job import weights_of

STEPS = 14
SURVIVAL_SECONDS = 60.0
"""Longest time that a rank may take to notice that the other was killed."""


@dataclass
class Campaign:
    """Counts of a campaign and what it found wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        """Note a problem unless a condition holds."""
        if not holds:
            self.problems.append(problem)


def final_losses(run: Path) -> dict[int, float]:
    """Loss of each step after attempts were merged; a repeated step would be there twice."""
    records = [r for r in final_records(read_records(run / "metrics.jsonl")) if "train/loss" in r]
    assert len({r["step"] for r in records}) == len(records), f"a step is final twice in {run}"
    return {r["step"]: r["train/loss"] for r in records}


def kill_until_done(
    overrides: Sequence[str],
    run: Path,
    *,
    seed: int,
    kills: int,
    whole_seconds: float,
    campaign: Campaign,
    program: Callable[[], int] = main_train,
) -> None:
    """Start a run of two ranks, kill some or all of them ``kills`` times, then let it finish.

    Args:
        overrides: Configuration of the run.
        run: Its folder.
        seed: Decides moments and victims.
        kills: Kills before it may finish.
        whole_seconds: Time that the run takes when nobody kills it.
        campaign: Takes counts and problems.
        program: Trains.
    """
    generator = random.Random(seed)
    for number in range(kills):
        arguments = ["train.py", *overrides]
        with started_programs(program, arguments, rank_environments(2)) as job:
            _wait_for_the_moment(generator, run, job, whole_seconds)
            victims = generator.choice([(0, 1), (0,), (1,)])
            was_over = _kill(job, victims)
            reported = _reported_step(run)
            hung = job.wait(SURVIVAL_SECONDS)
            campaign.expect(not hung, f"{run.name} kill {number}: survivors {hung} still wait")
        campaign.counts["too late" if was_over else f"kills of {victims}"] += 1
        _check_newest(run, reported, campaign, what=f"{run.name} kill {number}")
    _finish(overrides, run, campaign, program)


def kill_at(
    point: Point,
    rank: int,
    overrides: Sequence[str],
    run: Path,
    *,
    with_others: bool,
    program: Callable[[], int] = main_train,
) -> list[str]:
    """Start a run of two ranks of which one dies at a point, then let it finish.

    Args:
        point: Call at which it dies.
        rank: The rank that dies.
        overrides: Configuration of the run.
        run: Its folder.
        with_others: Kill the other rank at once, as a node that loses power does.
        program: Trains.

    Returns:
        What was wrong.
    """
    campaign = Campaign()
    environments = rank_environments(2)
    environments[rank] |= {POINT: str(point)}
    killed = partial(killed_program, program)
    with started_programs(killed, ["train.py", *overrides], environments) as job:
        victim, other = job.processes[rank], job.processes[1 - rank]
        victim.join(SURVIVAL_SECONDS)
        if with_others:
            other.kill()
        hung = job.wait(SURVIVAL_SECONDS)
        code = victim.exitcode
        campaign.expect(code == -signal.SIGKILL, f"rank {rank} ended {code}, not at the point")
        campaign.expect(not hung, f"survivors {hung} still wait")
    _check_newest(run, _reported_step(run), campaign, what=f"{point}, rank {rank}")
    _finish(overrides, run, campaign, program)
    return campaign.problems


def _finish(
    overrides: Sequence[str], run: Path, campaign: Campaign, program: Callable[[], int]
) -> None:
    with started_programs(program, ["train.py", *overrides], rank_environments(2)) as job:
        hung = job.wait(240)
        codes = [result.returncode for result in job.results()]
        errors = [result.stderr for result in job.results()]
    campaign.expect(not hung and codes == [0, 0], f"{run.name} ends {codes}: {errors[0][-1500:]}")


def check_end(run: Path, whole: Path, campaign: Campaign) -> None:
    """Compare weights, moments and losses with those of a run without kills."""
    found, expected = weights_of(run, STEPS), weights_of(whole, STEPS)
    differing = [name for name in expected if not np.array_equal(found[name], expected[name])]
    campaign.expect(not differing, f"{run.name}: other values in {differing[:3]}")
    campaign.counts["bit-equal"] += not differing
    losses = final_losses(run)
    campaign.expect(losses == final_losses(whole), f"{run.name}: other losses, {losses}")
    left = [
        p.name for p in (run / "checkpoints").iterdir() if p.name.startswith((".tmp", ".trash"))
    ]
    campaign.expect(not left, f"{run.name}: left over {left}")


def _wait_for_the_moment(
    generator: random.Random, run: Path, job: Programs, whole_seconds: float
) -> None:
    """Sleep to a random moment of the job, or up to 0.1 s after the first sign of a save."""
    deadline = time.monotonic() + generator.uniform(0.0, 0.7 * whole_seconds)
    waits_for_save = generator.random() < 0.55
    before = _staged(run)
    if waits_for_save:
        deadline = time.monotonic() + 30
    while time.monotonic() < deadline and job.processes[0].exitcode is None:
        if waits_for_save and _staged(run) - before:
            time.sleep(generator.uniform(0.0, 0.1))
            return
        time.sleep(0.002)


def _staged(run: Path) -> set[str]:
    try:
        return {p.name for p in (run / "checkpoints").iterdir()}
    except OSError:
        return set()


def _kill(job: Programs, victims: Sequence[int]) -> bool:
    """Kill the ranks; return True if one of them had ended by itself."""
    was_over = False
    for rank in victims:
        process = job.processes[rank]
        was_over |= process.exitcode is not None
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
    return was_over


def _reported_step(run: Path) -> int:
    """Newest step whose checkpoint metrics.jsonl reports; 0 if none."""
    file = run / "metrics.jsonl"
    records = read_records(file) if file.exists() else []
    return max((r["step"] for r in records if r.get("event") == "checkpoint"), default=0)


def _check_newest(run: Path, reported: int, campaign: Campaign, *, what: str) -> None:
    info = find_checkpoint(run / "checkpoints")
    newest = info.manifest.step if info else 0
    campaign.expect(newest >= reported, f"{what}: step {reported} was reported, {newest} is there")
    campaign.counts["reported and verified"] += reported > 0
