"""Points of a sweep: which there are, what they are called, and what is refused."""

import pytest

from glm_dist.errors import ConfigError
from glm_dist.sweep.points import expand
from tests.messages import Says

GROUPS = {"task": ["cb", "rte"], "corruption": ["glm_mixed"]}


def _names(*overrides: str) -> list[str]:
    return [point.name for point in expand(["run.name=s", *overrides], GROUPS)]


def test_points_are_the_product_of_all_lists_in_the_order_typed() -> None:
    points = expand(
        ["task=rte,cb", "run.name=s", "model.hidden_size=64", "run.seed=range(1,3)"], GROUPS
    )
    assert [point.name for point in points] == [
        "s-task_rte-seed_1",
        "s-task_rte-seed_2",
        "s-task_cb-seed_1",
        "s-task_cb-seed_2",
    ]
    assert points[2].overrides == (
        "task=cb",
        "model.hidden_size=64",
        "run.seed=1",
        "run.name=s-task_cb-seed_1",
    )
    assert points[2].setting == (("task", "cb"),)
    assert str(points[2]) == "task=cb run.seed=1"


def test_values_stay_as_typed() -> None:
    assert _names("optimizer.learning_rate=choice(1e-5, 2e-05)") == [
        "s-learning_rate_1e-5",
        "s-learning_rate_2e-05",
    ]
    assert _names("task=glob(*)") == ["s-task_cb", "s-task_rte"]
    (point, _) = expand(["run.name=s", "task.pattern='{a}, {b}','{b}'"], GROUPS)
    assert point.overrides[0] == "task.pattern='{a}, {b}'"


def test_a_larger_sweep_keeps_the_names_of_a_smaller_one() -> None:
    smaller = _names("run.seed=1,2", "run.init_from=a/one,b/one")
    larger = _names("run.seed=0,1,2", "run.init_from=c,b/one,a/one")
    assert len({*larger}) == 9
    assert {*smaller} <= {*larger}


def test_names_are_those_of_folders_and_differ() -> None:
    names = _names(
        "task.data.train='a b/x','a/b x','y'", f"run.init_from={'n' * 250},m", "task.epochs=1,2"
    )
    assert len({*names}) == 12
    assert all(len(name) <= 200 and "/" not in name and " " not in name for name in names)
    # 189 bytes, and 16 of what varies: a character of three bytes stands where the names are cut.
    cut = expand([f"run.name='{'模' * 63}'", "task.epochs=1,2", "run.seed=1,2"], GROUPS)
    assert len({point.name for point in cut}) == 4
    assert all(len(point.name.encode()) <= 200 for point in cut)
    assert cut[0].overrides[-1] == f"run.name='{cut[0].name}'"  # else no override
    assert _names("task.epochs=1,2", "lr_schedule.epochs=1,2")[0] == (
        "s-task.epochs_1-lr_schedule.epochs_1"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["run.seed=1,2"],
        ["run.name=a,b"],
        ["run.name=s", "run.seed=1"],
        ["run.name=s", "run.seed=1,2", "run.seed=3"],
        ["run.name=s", "run.seed=1,1"],
        ["run.name=s", "run.seed=interval(0,1)"],
        ["run.name=s", "run.seed=range(1,1)"],
        ["run.name=s", "task=glob(x*)"],
        ["run.name=s", "run.seed=1,,2"],
    ],
    ids=" ".join,
)
def test_sweep_that_has_no_points_is_refused(overrides: list[str], says: Says) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(overrides, GROUPS)
    says(caught.value)
