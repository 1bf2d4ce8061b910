"""A run folder says what ran, counts attempts, and keeps what an attempt changed."""

import json
import multiprocessing
import multiprocessing.synchronize
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import glm_dist
from glm_dist.errors import ConfigError, LaunchError
from glm_dist.observe import run_folder
from glm_dist.observe.provenance import version_line
from glm_dist.observe.run_folder import Provenance, collect_provenance, open_run_folder


def provenance() -> Provenance:
    return collect_provenance(
        hosts=["node1", "node1", "node2"],
        world_size=3,
        layout={"tp": 1, "pp": 1, "dp": 3},
        command=["train.py", "experiment=tiny"],
        launcher="torchrun",
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_run_folder_has_configuration_overrides_and_provenance(tmp_path: Path) -> None:
    opened = open_run_folder(
        tmp_path / "runs" / "a", config="x: 1\n", overrides=["a=1", "b=2"], provenance=provenance()
    )
    assert opened.attempt == 1
    assert names(opened.path) == ["config.yaml", "lock", "overrides.txt", "provenance.json"]
    assert (opened.path / "config.yaml").read_text() == "x: 1\n"
    assert (opened.path / "overrides.txt").read_text() == "a=1\nb=2\n"
    (attempt,) = json.loads((opened.path / "provenance.json").read_text())["attempts"]
    assert attempt["hosts"] == ["node1", "node2"]
    assert attempt["world_size"] == 3
    assert attempt["layout"] == {"tp": 1, "pp": 1, "dp": 3}
    assert attempt["command"] == ["train.py", "experiment=tiny"]
    assert attempt["launcher"] == "torchrun"


def test_provenance_names_versions_of_what_computes() -> None:
    versions = provenance().versions
    assert versions["python"] == sys.version.split()[0]
    assert versions["torch"] == torch.__version__
    assert versions["glm_dist"] == glm_dist.__version__
    assert set(versions) >= {"deepspeed", "megatron-core", "hydra-core", "omegaconf", "numpy"}


def test_resuming_is_the_next_attempt_and_keeps_a_configuration_that_changed(
    tmp_path: Path,
) -> None:
    for config in ("x: 1\n", "x: 1\n", "x: 2\n"):
        opened = open_run_folder(tmp_path, config=config, overrides=[], provenance=provenance())
    assert opened.attempt == 3
    assert len(json.loads((tmp_path / "provenance.json").read_text())["attempts"]) == 3
    assert (tmp_path / "config.yaml").read_text() == "x: 2\n"
    assert (tmp_path / "config.attempt_2.yaml").read_text() == "x: 1\n"
    assert "config.attempt_1.yaml" not in names(tmp_path)


def test_a_configuration_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    open_run_folder(tmp_path, config="x: 1\n", overrides=[], provenance=provenance())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ConfigError, match="File too large"):
            open_run_folder(tmp_path, config="x: 2\n" * 400, overrides=[], provenance=provenance())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "config.yaml").read_text() == "x: 1\n"


def test_a_place_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(ConfigError) as caught:
        open_run_folder(tmp_path / "runs" / "a", config="", overrides=[], provenance=provenance())
    assert caught.value.key == "paths.runs"
    assert "Not a directory" in str(caught.value)


def hold_folder(folder: Path, opened: "multiprocessing.synchronize.Event") -> None:
    """Be a running job until killed."""
    kept = open_run_folder(folder, config="x: 1\n", overrides=[], provenance=provenance())
    opened.set()
    signal.pause()
    assert kept


def test_a_second_job_stays_out_until_the_first_has_ended_in_whatever_way(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    opened = context.Event()
    first = context.Process(target=hold_folder, args=(tmp_path, opened))
    first.start()
    try:
        assert opened.wait(60)
        with pytest.raises(LaunchError, match="Another job is running") as caught:
            open_run_folder(tmp_path, config="x: 2\n", overrides=[], provenance=provenance())
        assert f"process {first.pid}" in str(caught.value)
        assert (tmp_path / "config.yaml").read_text() == "x: 1\n"
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
    finally:
        first.kill()
        first.join()

    second = open_run_folder(tmp_path, config="x: 2\n", overrides=[], provenance=provenance())

    assert second.attempt == 2


@pytest.mark.parametrize("content", ["", "[]", '{"attempts": 3}', "{"], ids=repr)
def test_damaged_provenance_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(ConfigError, match=r"provenance\.json is damaged"):
        open_run_folder(tmp_path, config="", overrides=[], provenance=provenance())


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    result = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return result.stdout.strip()


def checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package in it that claims to be this one."""
    package = folder / "glm_dist"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git(folder, "init", "-q")
    monkeypatch.setattr(glm_dist, "__file__", str(package / "__init__.py"))
    return package


def test_a_checkout_gives_commit_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = checkout(tmp_path, monkeypatch)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    clean = provenance()
    assert (clean.commit, clean.is_dirty) == (git(tmp_path, "rev-parse", "HEAD"), False)
    (package / "__init__.py").write_text("x = 1\n")
    assert provenance().is_dirty is True


def test_an_image_gives_the_commit_that_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "glm_dist"
    package.mkdir()
    monkeypatch.setattr(glm_dist, "__file__", str(package / "__init__.py"))
    assert version_line() == f"glm-dist {glm_dist.__version__}"
    file = tmp_path / "glm_dist.commit"
    file.write_text("0123abc\n")
    assert (provenance().commit, provenance().is_dirty) == ("0123abc", False)
    file.write_text("0123abc modified\n")
    assert version_line() == f"glm-dist {glm_dist.__version__} (commit 0123abc, modified)"


def test_a_package_installed_inside_somebody_elses_checkout_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path, monkeypatch)
    (tmp_path / "other.txt").write_text("tracked")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-q", "-m", "one")
    assert (provenance().commit, provenance().is_dirty) == (None, None)


def test_provenance_names_the_job_its_restart_and_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4242")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    made = collect_provenance(
        hosts=["a"], world_size=1, layout={}, command=[], launcher="srun", hardware={"gpu": "H100"}
    )
    assert made.job == {"SLURM_JOB_ID": "4242", "SLURM_RESTART_COUNT": "2"}
    assert made.hardware == {"gpu": "H100"}


def hold(folder: Path, job: str, seconds: float, held: multiprocessing.synchronize.Event) -> None:
    """Be an earlier attempt that still ends."""
    os.environ["SLURM_JOB_ID"] = job
    opened = run_folder.lock_run_folder(folder)
    held.set()
    time.sleep(seconds)
    assert opened.lock is not None


@pytest.mark.parametrize(
    ("job", "seconds", "status"),
    [("42", 0.5, None), ("42", 30.0, 75), ("4", 30.0, 2)],
    ids=["own, and ends", "own, and stays", "another job's"],
)
def test_the_lock_of_an_earlier_attempt_of_the_same_job_is_waited_for(
    job: str,
    seconds: float,
    status: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_folder, "OWN_LOCK_SECONDS", 3.0)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=hold, args=(tmp_path, job, seconds, held))
    other.start()
    assert held.wait(10)
    try:
        if status is None:
            opened = run_folder.lock_run_folder(tmp_path)
            assert opened.lock is not None
        else:
            with pytest.raises(LaunchError) as caught:
                run_folder.lock_run_folder(tmp_path)
            assert caught.value.status == status
    finally:
        other.kill()
        other.join()
