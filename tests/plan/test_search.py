"""The search proposes only what is accepted and fits, and says why it leaves out the rest."""

import itertools
import random
from pathlib import Path

import pytest

from glm_dist.config.checks import check_config
from glm_dist.config.load import load_config
from glm_dist.errors import GlmDistError
from glm_dist.parallel.layout import Layout
from glm_dist.plan.cluster import Cluster
from glm_dist.plan.gpus import gpu_named
from glm_dist.plan.memory import rank_memory
from glm_dist.plan.search import SEARCHED, make_plan, rank_plans
from tests.train.jobs import make_files, with_ranks

CLUSTER = Cluster(gpu_named("a100-40"), 8, network_gb_per_second=25.0)
LARGE = ("experiment=glm_large", "batch.global_batch_size=256")


def test_every_plan_is_accepted_as_typed_and_every_rank_fits() -> None:
    ranking = rank_plans(load_config(LARGE), CLUSTER, 16)
    speeds = [plan.tokens_per_second for plan in ranking.plans]
    assert len(speeds) > 50
    assert speeds == pytest.approx(sorted(speeds, reverse=True))
    for plan in random.Random(0).sample(ranking.plans, 8):
        typed = load_config([*LARGE, *plan.overrides])
        check_config(typed, world_size=16)
        assert typed == plan.config
        layout = Layout.from_config(typed, 16)
        totals = [rank_memory(typed, layout, rank).total for rank in range(16)]
        assert max(totals) == plan.memory.memory.total <= CLUSTER.gpu.memory


@pytest.mark.parametrize("fixed", [(), ("recompute.segment_layers",)])
def test_segments_of_an_experiment_do_not_forbid_to_recompute_nothing(
    fixed: tuple[str, ...],
) -> None:
    given = [*LARGE, "recompute.mode=full", "recompute.segment_layers=2"]
    ranking = rank_plans(load_config(given), CLUSTER, 2, fixed=fixed)
    modes = {plan.config.recompute.mode.name for plan in ranking.plans}
    assert modes == ({"full"} if fixed else {"none", "full"})
    for plan in ranking.plans:
        assert load_config([*given, *plan.overrides]) == plan.config


def test_of_equally_fast_ways_the_plain_one_is_first() -> None:
    # The host limits both, and the sums of their parts differ in the last digit.
    cluster = Cluster(gpu_named("h100"), 8, network_gb_per_second=50.0)
    ranking = rank_plans(load_config(["experiment=quickstart"]), cluster, 16)
    first, second = ranking.plans[:2]
    assert first.tokens_per_second == pytest.approx(second.tokens_per_second, rel=1e-12)
    assert [p.config.recompute.mode.name for p in (first, second)] == ["none", "full"]


def test_tensor_ranks_never_straddle_nodes() -> None:
    cluster = Cluster(gpu_named("a100-40"), 6, network_gb_per_second=25.0)
    config = load_config(["experiment=glm_large", "batch.global_batch_size=192"])
    assert {p.layout.tensor_parallel_size for p in rank_plans(config, cluster, 12).plans} == {1, 2}


def test_each_layout_is_ranked_or_left_out_for_a_reason() -> None:
    ranking = rank_plans(load_config(LARGE), CLUSTER, 16)
    found = {
        (layout.tensor_parallel_size, layout.pipeline_parallel_size)
        for layout in (plan.layout for plan in ranking.plans)
    }
    wanted = {(t, p) for t, p in itertools.product((1, 2, 4, 8), (1, 2, 4, 8, 16)) if t * p <= 16}
    left_out = wanted - found
    # 24 layers have no 16 equal stages.
    assert left_out == {pair for pair in wanted if pair[1] == 16}
    assert "parallel.pipeline_parallel_size=16 does not divide" in str(ranking.left_out)
    # 564 positions have no 8 equal parts.
    assert all(
        plan.config.parallel.sequence_parallel is (plan.layout.tensor_parallel_size in (2, 4))
        for plan in ranking.plans
    )


@pytest.mark.parametrize(
    "fixed",
    [("zero.stage",), ("parallel.tensor_parallel_size", "batch.micro_batch_size"), SEARCHED],
)
def test_fixed_keys_keep_their_values(fixed: tuple[str, ...]) -> None:
    ranking = rank_plans(load_config(LARGE), CLUSTER, 16, fixed=fixed)
    assert ranking.plans
    assert not [plan for plan in ranking.plans if set(plan.changes) & set(fixed)]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"parallel.tensor_parallel_size": 3}, "parallel.tensor_parallel_size"),
        ({"parallel.pipeline_parallel_size": 16}, "parallel.pipeline_parallel_size"),
        ({"parallel.virtual_stages": 2}, "parallel.virtual_stages"),
        ({"parallel.pipeline_parallel_size": 2, "zero.stage": 2}, "zero.stage"),
        ({"parallel.pipeline_parallel_size": 2, "zero.stage": 3}, "zero.stage"),
        ({"parallel.sequence_parallel": True}, "parallel.sequence_parallel"),
        ({"parallel.stage_layers": [12, 12]}, "parallel.stage_layers"),
        ({"batch.micro_batch_size": 5}, "batch.global_batch_size"),
        ({"parallel.data_parallel_size": 3}, "world size"),
        (
            {"parallel.pipeline_parallel_size": 2, "parallel.virtual_stages": 5},
            "parallel.virtual_stages",
        ),
    ],
)
def test_what_is_refused_is_refused_by_the_checks_of_a_launch(
    changes: dict[str, object], key: str
) -> None:
    with pytest.raises(GlmDistError) as caught:
        make_plan(load_config(LARGE), CLUSTER, 16, changes=changes)
    assert caught.value.key == key


def test_a_model_that_fits_nowhere_names_what_misses_least() -> None:
    ranking = rank_plans(load_config(["experiment=glm_130b"]), CLUSTER, 8)
    assert not ranking.plans
    assert ranking.left_out["memory"].reason.startswith("the nearest misses ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_proposed_layouts_of_a_small_model_start(tmp_path: Path) -> None:
    files = [
        *make_files(tmp_path),
        "run.name=plan",
        "run.steps=1",
        "evaluation.interval=0",
        "zero=stage1",
    ]
    files += ["model.num_layers=4", "batch.global_batch_size=8", "checkpoint.interval=0"]
    plans = rank_plans(load_config(files), CLUSTER, 2).plans
    for number, plan in enumerate(random.Random(1).sample(plans, 30)):
        done = with_ranks([*files, f"run.name=plan{number}", *plan.overrides], 2)
        said = "".join(rank.stderr for rank in done)
        assert [rank.returncode for rank in done] == [0, 0], f"{plan.overrides}\n{said}"
