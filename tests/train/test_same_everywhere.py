"""A host with other libraries, other code or another configuration is found before training."""

import os
from dataclasses import replace

import pytest
import torch

from glm_dist.config.launch import LaunchEnvironment
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
        elif case == "device":  # a driver that does not work, on one host of many
            torch.cuda.is_available = lambda: True
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


def agree(case: str) -> tuple[str, int]:
    """Compare variables of two ranks; the second one differs. Return error and threads."""
    rank = int(os.environ["RANK"])
    launch = LaunchEnvironment(rank, 2, rank, 2, "127.0.0.1", 1, "torchrun")
    environ = {"GLM_RUNS": "/r", "OMP_NUM_THREADS": "1", "GLM_RUN_FOLDER_FILE": str(rank)}
    if case == "chosen":  # 1 + rank: hosts with other numbers of cores
        torch.set_num_threads(1 + rank)
        launch = replace(launch, threads=1 + rank)
    elif rank == 1 and case == "places":
        environ |= {"GLM_RUNS": "./runs", "GLM_X": "1"}
    elif rank == 1 and case == "threads":
        environ["OMP_NUM_THREADS"] = "2"
    elif rank == 1 and case == "partly chosen":
        torch.set_num_threads(2)
        launch = replace(launch, threads=2)
    try:
        same_everywhere.agree_on_surroundings(launch, environ)
    except LaunchError as error:
        return f"{type(error).__name__}: {error}", torch.get_num_threads()
    return "same", torch.get_num_threads()


@pytest.mark.parametrize("case", ["places", "threads", "partly chosen"])
def test_variables_that_differ_are_named_with_values_and_ranks(case: str, says: Says) -> None:
    first, second = run_ranks(agree, case, world_size=2)
    assert first[0] == second[0] != "same"
    says(first[0])


def test_ranks_use_the_same_number_of_threads_if_nobody_has_set_it() -> None:
    assert run_ranks(agree, "chosen", world_size=2) == [("same", 1), ("same", 1)]
    assert run_ranks(agree, "same", world_size=2) == [("same", 1), ("same", 1)]


def test_hosts_with_other_examples_are_refused_on_all_ranks() -> None:
    first, second = run_ranks(compare_data, "b", world_size=2)
    assert first == second
    assert "different data:\n  task.data.valid: a on " in first
    assert "task.data.train" not in first
    assert run_ranks(compare_data, "a", world_size=2) == ["same", "same"]


@pytest.mark.parametrize("case", ["version", "device", "value"])
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
