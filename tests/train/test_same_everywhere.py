"""A host with other libraries, other code or another configuration is found before training."""

import os

import pytest

from glm_dist.config.load import load_config
from glm_dist.errors import LaunchError
from glm_dist.train import same_everywhere
from tests.messages import Says
from tests.ranks import run_ranks


def compare(case: str) -> str:
    """Compare two ranks; the second one differs. Return the error, or what it was not."""
    typed = ["experiment=tiny", "run.name=same", "paths.runs=/shared/runs"]
    if os.environ["RANK"] == "1":
        kept = same_everywhere.library_versions
        if case == "version":
            same_everywhere.library_versions = lambda: kept() | {"torch": "2.9.0"}  # type: ignore[assignment]
        elif case == "source":
            same_everywhere._source = lambda: "another"
        elif case == "value":
            typed += ["paths.runs=/local/runs", "optimizer.learning_rate=3e-4"]
        else:
            typed += ["paths.data=/nvme/data", "data.corpora.shakespeare.prefix=/nvme/shakespeare"]
    try:
        same_everywhere.check_same_everywhere(load_config(typed))
    except LaunchError as error:
        return f"{type(error).__name__}: {error}"
    return "same"


def compare_data(digest: str) -> str:
    """Compare two ranks, of which the second has another file for validation."""
    valid = digest if os.environ["RANK"] == "1" else "a"
    try:
        same_everywhere.check_same_data({"task.data.train": "a", "task.data.valid": valid})
    except LaunchError as error:
        return str(error)
    return "same"


def test_hosts_with_other_examples_are_refused_on_all_ranks() -> None:
    first, second = run_ranks(compare_data, "b", world_size=2)
    assert first == second
    assert "different data:\n  task.data.valid: a on " in first
    assert "task.data.train" not in first
    assert run_ranks(compare_data, "a", world_size=2) == ["same", "same"]


@pytest.mark.parametrize("case", ["version", "value"])
def test_what_differs_is_shown_with_its_hosts(case: str, says: Says) -> None:
    first, second = run_ranks(compare, case, world_size=2)
    assert first == second
    says(first.replace(torch_version(), "<torch>"))


def torch_version() -> str:
    """Version of the installed torch."""
    return str(same_everywhere.library_versions()["torch"])


def test_another_checkout_of_the_same_version_is_found() -> None:
    for text in run_ranks(compare, "source", world_size=2):
        assert "source of glm_dist: " in text
        assert "another on" in text


def test_a_host_may_have_its_own_copy_of_the_data() -> None:
    assert run_ranks(compare, "data", world_size=2) == ["same", "same"]
