"""``checkpoint.url`` in real jobs of two ranks: lost folders, failing and dying uploads."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from glm_dist.checkpoint.remote import RemoteStore, open_store
from glm_dist.cli.main import main_train
from tests.checkpoint.stores import new_url
from tests.train.jobs import glm_dist_command, make_saving_files, with_ranks
from tests.train.test_job import weights_of
from tests.train.test_saver import assert_equal_bits, events_of, saved_steps

STEPS = 6


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run folder's parent, and the overrides of the tiny job."""
    folder = tmp_path_factory.mktemp("uploads")
    typed = make_saving_files(folder, steps=STEPS, interval=2, keep_last=2)
    return folder / "runs", typed


@pytest.fixture(scope="module")
def whole(job: tuple[Path, list[str]]) -> dict[str, np.ndarray]:
    """Weights of the run that saves on the disk alone."""
    runs, overrides = job
    for done in with_ranks([*overrides, "run.name=whole"], 2):
        assert done.returncode == 0, done.stderr
    return weights_of(runs / "whole", STEPS)


def with_failing_uploads(act: Callable[[str], None], name: str) -> int:
    """``train.py`` that calls something before the store writes an object of that name."""
    put, write = RemoteStore.put, RemoteStore.write

    def failing_put(self: RemoteStore, path: Path, there: str, **facts: Any) -> None:
        if there == name:
            with self._explained("write", there):
                act(there)
        put(self, path, there, **facts)

    def failing_write(self: RemoteStore, there: str, content: bytes) -> None:
        if there == name:
            act(there)
        write(self, there, content)

    RemoteStore.put, RemoteStore.write = failing_put, failing_write
    return main_train()


def refuse(name: str) -> None:
    """Answer as a store without room does."""
    raise OSError("507 Insufficient Storage")


def die(name: str) -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(120)
def test_a_lost_folder_resumes_from_the_store_and_a_failed_upload_costs_nothing(
    job: tuple[Path, list[str]], whole: dict[str, np.ndarray], tmp_path: Path
) -> None:
    runs, overrides = job
    run, url = runs / "lost", new_url(tmp_path / "store")
    typed = [*overrides, "run.name=lost", f"checkpoint.url={url}"]
    program = partial(with_failing_uploads, refuse, "step_0000002/__1_0.distcp")

    # The schedule of the whole run, but only four steps of it.
    failed = with_ranks([*typed, "run.steps=4"], 2, program=program)

    assert [each.returncode for each in failed] == [0, 0], failed[0].stderr
    console = failed[0].stderr + failed[1].stderr
    said = f"{url}/lost/step_0000002/__1_0.distcp: could not write it: OSError: 507 Insufficient"
    assert console.count(said) == 1
    assert console.count("the upload of step 2 failed: ") == 1
    assert "Traceback" not in console
    assert events_of(run, "upload_failed") == [2]
    assert events_of(run, "uploaded") == [4]
    assert saved_steps(run) == [2, 4]
    assert open_store(url, "lost").steps() == ([4], [])  # what was left of step 2 is gone

    shutil.rmtree(run)
    said = f"(continues from 4, fetched from {url}/lost/step_0000004)"
    assert said in glm_dist_command("check", *typed, "--processes=2").stdout
    other = glm_dist_command("check", *typed, "--processes=2", "optimizer.learning_rate=2e-3")
    assert other.returncode == 2
    assert f"but {url}/lost/config.yaml has other values" in other.stderr
    assert not (run / "checkpoints").exists()

    resumed = with_ranks([*typed, "checkpoint.resume=must", "checkpoint.background=false"], 2)

    assert [each.returncode for each in resumed] == [0, 0], resumed[0].stderr
    assert f"fetched step=4 from={url}/lost/step_0000004" in resumed[0].stderr
    assert saved_steps(run) == [4, 6]
    assert events_of(run, "uploaded") == [6]
    assert_equal_bits(weights_of(run, STEPS), whole)


@pytest.mark.timeout(120)
def test_a_kill_between_data_and_manifest_leaves_no_checkpoint_and_is_made_up_for(
    job: tuple[Path, list[str]], tmp_path: Path
) -> None:
    runs, overrides = job
    run, url = runs / "killed", new_url(tmp_path / "store")
    store = open_store(url, "killed")
    typed = [*overrides, "run.name=killed", f"checkpoint.url={url}"]
    program = partial(with_failing_uploads, die, "step_0000004/manifest.json")

    killed = with_ranks([*typed, "run.steps=4"], 2, program=program)

    assert killed[0].returncode == -signal.SIGKILL
    assert sorted(store.names(4)) == ["__0_0.distcp", "__1_0.distcp"]
    assert store.steps() == ([2], [4])
    run.rename(runs / "kept")
    without = with_ranks([*typed, "run.steps=2"], 2)
    assert without[0].returncode == 0, without[0].stderr
    assert f"incomplete checkpoint url={url}/killed/step_0000004" in without[0].stderr
    assert "loaded step=2" in without[0].stderr
    shutil.rmtree(run)
    (runs / "kept").rename(run)
    again = with_ranks([*typed, "run.steps=4"], 2)  # nothing to train, but one to upload
    assert again[0].returncode == 0, again[0].stderr
    assert "loaded step=4" in again[0].stderr
    assert store.steps() == ([4, 2], [])


def test_going_back_counts_on_the_store_too(job: tuple[Path, list[str]], tmp_path: Path) -> None:
    runs, overrides = job
    url = new_url(tmp_path / "store")
    typed = [*overrides, "parallel=single", "run.name=back", f"checkpoint.url={url}"]
    for extra in (["run.steps=4"], ["run.steps=2", "checkpoint.step=2"], ["run.steps=2"]):
        (done,) = with_ranks([*typed, *extra], 1)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(runs / "back")
    assert "loaded step=2" in done.stderr
    assert open_store(url, "back").steps() == ([2], [4])


def test_a_store_that_cannot_be_used_is_refused_before_training(
    job: tuple[Path, list[str]], tmp_path: Path
) -> None:
    _, overrides = job
    (tmp_path / "file").write_text("")
    for url, said in (
        (f"file://{tmp_path}/file", "cannot be used. "),
        ("s4://bucket/glm", "cannot be opened: ValueError: Protocol not known: s4"),
    ):
        typed = [*overrides, "parallel=single", "run.name=no", f"checkpoint.url={url}"]
        (done,) = with_ranks(typed, 1)
        assert done.returncode == 2
        assert f"ConfigError: checkpoint.url={url} {said}" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_new_run_of_the_same_name_does_not_replace_what_the_store_has(
    job: tuple[Path, list[str]], tmp_path: Path
) -> None:
    _, overrides = job
    system = fsspec.filesystem("file")
    system.makedirs(f"{tmp_path}/taken/step_0000002")
    system.pipe_file(f"{tmp_path}/taken/step_0000002/manifest.json", json.dumps({}).encode())
    typed = [*overrides, "run.name=taken", f"checkpoint.url=file://{tmp_path}"]
    done = glm_dist_command("check", *typed, "--processes=2", "checkpoint.resume=never")
    assert done.returncode == 2
    assert f"checkpoint.url has file://{tmp_path}/taken/step_0000002" in done.stderr
