"""A profile has all work of its step and nothing else, and training is the same without it."""

import gzip
import json
import re
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from glm_dist.config.observe_checks import check_records
from glm_dist.errors import ConfigError
from glm_dist.observe.phases import PhaseClock
from glm_dist.observe.step_profiler import named_range
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.train.job import build_engine
from glm_dist.train.loop import LoopContext, train
from glm_dist.train.preemption import StopRequest
from glm_dist.train.rows import RunRows
from glm_dist.train.workload import open_pretraining
from tests.messages import Says
from tests.ranks import run_ranks
from tests.train.jobs import make_files
from tests.train.test_loop import Records

LAYERS = 2
MICRO_BATCHES = 2
"""4 rows of a step on 2 replicas, one row each time."""


def weights(overrides: list[str], name: str, *, first_step: int = 0) -> list[torch.Tensor]:
    """Train on this rank; return its final weights."""
    config = load_config([*overrides, f"run.name={name}"])
    config.run_dir.mkdir(parents=True, exist_ok=True)
    groups = build_groups(Layout(1, 1, 2), timedelta(seconds=60))
    device = torch.device("cpu")
    workload = open_pretraining(config)
    engine = build_engine(config, groups, device=device, world_size=2, task=workload.task)
    run = LoopContext(
        config=config,
        engine=engine,
        rows=RunRows(config, workload.rows, groups, done=first_step),
        workload=workload,
        stop_request=StopRequest(),
        sink=Records(),
        checkpoints=config.run_dir / "checkpoints",
        identity={},
        device=device,
        phases=PhaseClock(annotate=named_range),
    )
    train(run, first_step=first_step)
    return [shard.parameter.detach().clone() for shard in engine.shards]


def compare_runs(overrides: list[str]) -> tuple[bool, list[str]]:
    """Whether weights are equal with and without a profile, and what a resumed run profiles."""
    enable_cpu()
    profile = ["observe.profile_steps=[3]", "observe.profile_ranks=[1]"]
    without = weights(overrides, "without")
    profiled = weights([*overrides, *profile], "profiled")
    weights([*overrides, *profile], "resumed", first_step=3)
    folder = Path(load_config([*overrides, "run.name=resumed"]).run_dir)
    is_equal = all(map(torch.equal, without, profiled))
    return is_equal, sorted(path.name for path in folder.glob("profile/*"))


def events(path: Path) -> list[dict[str, Any]]:
    """Ranges and operators of a trace in the order of time."""
    found = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted((e for e in found if e.get("ph") == "X"), key=lambda event: event["ts"])


def test_a_profile_is_one_whole_step_and_changes_nothing(tmp_path: Path) -> None:
    overrides = [
        *make_files(tmp_path),
        "parallel=dp2",
        "zero=stage1",
        "batch.micro_batch_size=1",
        "model.hidden_dropout=0.1",
        "evaluation.interval=0",
        "checkpoint.interval=3",
        "checkpoint.background=false",
        "observe.log_interval=100",
    ]

    results = run_ranks(compare_runs, overrides, world_size=2)

    assert results == [(True, [])] * 2
    folder = tmp_path / "runs/profiled/profile"
    files = {path.name for path in folder.iterdir()}
    assert files == {"rank_1_step_3.json.gz", "rank_1_step_3.txt"}
    assert "forward-backward" in (folder / "rank_1_step_3.txt").read_text()
    traced = events(folder / "rank_1_step_3.json.gz")
    (step,) = [event for event in traced if event["name"] == "ProfilerStep#3"]
    parts = ("data", "forward-backward", "reduction", "update", "save")
    ranges = [event for event in traced if event["name"] in parts]
    assert [event["name"] for event in ranges] == list(parts)
    ends = [event["ts"] + event["dur"] for event in ranges]
    assert step["ts"] <= ranges[0]["ts"]
    assert all(end <= later["ts"] for end, later in zip(ends, ranges[1:], strict=False))
    assert ends[-1] <= step["ts"] + step["dur"]
    for name in ("_SplitAttention", "_SplitAttentionBackward"):
        assert sum(event["name"] == name for event in traced) == LAYERS * MICRO_BATCHES


def test_the_command_of_the_page_is_accepted() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/performance.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"(?m)^deepspeed train\.py (.*profile_steps.*)$", page)
    config = load_config(shlex.split(command))
    check_config(config, world_size=8)
    check_records(config)
    assert config.observe.profile_steps == [100, 101]


def test_a_profile_after_the_end_is_refused(says: Says) -> None:
    config = load_config(["experiment=tiny", "run.steps=20", "observe.profile_steps=[5, 21]"])
    with pytest.raises(ConfigError) as caught:
        check_records(config)
    says(caught.value)
