"""A store fails, lies, is slow or belongs to somebody else: no partial checkpoint is ever used."""

import json
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from glm_dist.checkpoint.fetch import fetch_newer
from glm_dist.checkpoint.folders import create_staging
from glm_dist.checkpoint.load import read_checkpoint
from glm_dist.checkpoint.remote import RemoteStore, StoreError, open_store, without_secrets
from glm_dist.checkpoint.retention import Upkeep, retire
from glm_dist.checkpoint.upload import (
    SupersededError,
    Uploader,
    claim_store,
    retire_remote,
    upload_checkpoint,
)
from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.parallel.errors import Ranks
from tests.checkpoint.stores import new_store, patch, save


def unclaimed() -> None:
    """Claim that always holds."""


def upload(store: RemoteStore, folder: Path) -> int:
    return upload_checkpoint(store, folder, check=unclaimed)


def fetch(store: RemoteStore, directory: Path, **chosen: int | None) -> Path | None:
    directory.mkdir(exist_ok=True)
    return fetch_newer(
        store,
        directory,
        local=chosen.get("local"),
        step=chosen.get("step"),
        begin=lambda step: create_staging(directory, step),
        timeout=60,
    )


def uploader(store: RemoteStore, *, upkeep: Upkeep | None = None, timeout: float = 60) -> Uploader:
    claim = claim_store(store, attempt=1, config="")
    return Uploader(claim, Upkeep() if upkeep is None else upkeep, 2, timeout=timeout)


def ended(watched: Uploader, seconds: float = 30) -> None:
    """Wait for the thread itself, overdue or not."""
    limit = time.monotonic() + seconds
    while watched._current is not None:
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_checkpoint_comes_back_bit_by_bit_and_its_manifest_was_written_last(
    tmp_path: Path,
) -> None:
    store, written = new_store(), []
    original = patch(
        store,
        put_file=lambda source, path: written.append(path) or original.put_file(source, path),
        pipe_file=lambda path, content: written.append(path) or original.pipe_file(path, content),
    )
    folder = save(tmp_path / "here", 4)

    upload(store, folder)
    found = fetch(store, tmp_path / "there")

    names = [path.rpartition("/")[2] for path in written]
    assert names == ["__0_0.distcp", "manifest.json", "latest.json"]
    assert json.loads(store.read("latest.json")) == {"step": 4, "path": "step_0000004"}
    assert found == tmp_path / "there" / "step_0000004"
    for file in folder.iterdir():
        assert (found / file.name).read_bytes() == file.read_bytes()
    assert [path.name for path in found.parent.iterdir()] == ["step_0000004"]
    assert upload(store, folder) == 0  # it is there already


@pytest.mark.parametrize("damage", ["truncated", "changed", "refused"])
def test_an_object_that_does_not_arrive_whole_leaves_no_checkpoint(
    tmp_path: Path, damage: str
) -> None:
    store = new_store()

    def put_file(source: str, path: str) -> None:
        content = Path(source).read_bytes()
        if damage == "refused":
            raise PermissionError("AccessDenied")
        spoilt = content[:-1] if damage == "truncated" else b"\xff" + content[1:]
        original.pipe_file(path, spoilt)

    original = patch(store, put_file=put_file)
    folder = save(tmp_path, 4)
    size = (folder / "__0_0.distcp").stat().st_size
    said = {
        "truncated": f"it has {size - 1} of {size} bytes",
        "changed": "its SHA-256 is not the file's",
        "refused": "PermissionError: AccessDenied",
    }

    with pytest.raises(StoreError) as caught:
        upload(store, folder)

    assert f"{store.url}/step_0000004/__0_0.distcp: could not write it: {said[damage]}" in str(
        caught.value
    )
    assert store.steps()[0] == []
    assert not store.exists("latest.json")
    store._system = original
    upload(store, folder)  # and the next try is whole
    assert store.steps() == ([4], [])


def test_damaged_and_incomplete_ones_are_skipped_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = new_store()
    for step in (1, 2, 3, 4):
        upload(store, save(tmp_path / "here", step))
    system, at = store._system, f"{store._root}/step_000000"
    system.rm_file(f"{at}4/manifest.json")
    content = bytearray(system.cat_file(f"{at}3/__0_0.distcp"))
    content[len(content) // 2] ^= 1
    system.pipe_file(f"{at}3/__0_0.distcp", bytes(content))
    system.rm_file(f"{at}2/__0_0.distcp")

    with caplog.at_level(logging.WARNING):
        found = fetch(store, tmp_path / "there")

    assert found == tmp_path / "there" / "step_0000001"
    read_checkpoint(found)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert lines == [
        f"skipped incomplete checkpoint url={store.url}/step_0000004 reason=no manifest.json",
        f"skipped damaged checkpoint url={store.url}/step_0000003 reason=__0_0.distcp was changed:"
        " its SHA-256 is not the one in the manifest",
        f"skipped damaged checkpoint url={store.url}/step_0000002 reason=__0_0.distcp is missing",
    ]
    assert [path.name for path in found.parent.iterdir()] == ["step_0000001"]
    assert fetch(store, tmp_path / "there", local=1) is None
    store.remove(1)
    with pytest.raises(CheckpointError, match=r"are damaged \(step_0000003, step_0000002\)"):
        fetch(store, tmp_path / "elsewhere")


def test_a_step_is_fetched_if_it_is_asked_for_and_not_here(tmp_path: Path) -> None:
    store = new_store()
    for step, extra in ((1, {}), (2, {}), (3, {"rewound_to": 1})):
        upload(store, save(tmp_path / "here", step, **extra))
    there = tmp_path / "there"
    assert fetch(store, there, step=2) == there / "step_0000002"
    # The job that went back to step 1 has saved since, so its command continues from there.
    assert fetch(store, there, step=1) == there / "step_0000003"
    assert fetch(store, there, step=1, local=3) is None


def test_old_ones_are_removed_manifest_first_and_two_verified_ones_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, removed = new_store(), []
    for step in (10, 11, 12, 13, 14, 15):
        upload(store, save(tmp_path, step))
    system, at = store._system, f"{store._root}/step_00000"
    system.pipe_file(f"{at}14/__0_0.distcp", b"damaged")
    system.rm_file(f"{at}11/manifest.json")  # an upload that was interrupted
    original = patch(store, rm_file=lambda path: removed.append(path) or original.rm_file(path))

    gone = retire_remote(
        store, step=15, keep=2, stays=lambda step: step == 10, verified={15}, check=unclaimed
    )

    assert gone == [12]
    assert store.steps() == ([15, 14, 13, 10], [])
    assert [path.removeprefix(at) for path in removed] == [
        "12/manifest.json",
        "12/__0_0.distcp",
        "11/__0_0.distcp",
    ]
    assert "step_0000014 reason=__0_0.distcp has 7 of" in caplog.text


def test_a_superseded_job_uploads_and_removes_nothing_more(tmp_path: Path) -> None:
    store = new_store()
    first = uploader(store)
    first.offer(save(tmp_path, 1))
    ended(first)
    assert [outcome.error for outcome in first.outcomes()] == [""]
    second = claim_store(store, attempt=1, config="")

    for step in (2, 3):
        first.offer(save(tmp_path, step))
        ended(first)

    (outcome,) = first.outcomes()  # step 3 was not tried
    assert "lock.json belongs to" in outcome.error
    assert "This job uploads nothing more" in outcome.error
    assert store.steps() == ([1], [])
    second.check()
    with pytest.raises(SupersededError):
        first.claim.check()


def test_a_job_that_is_superseded_in_an_upload_writes_no_manifest(tmp_path: Path) -> None:
    store = new_store()

    def put_file(source: str, path: str) -> None:
        original.put_file(source, path)
        claim_store(store, attempt=2, config="")

    watched = uploader(store)
    original = patch(store, put_file=put_file)
    watched.offer(save(tmp_path, 1))
    ended(watched)
    assert "This job uploads nothing more" in watched.outcomes()[0].error
    assert store.steps() == ([], [1])
    assert not store.exists("latest.json")


def test_a_slow_upload_is_reported_once_and_keeps_its_folder_until_it_ends(tmp_path: Path) -> None:
    store, goes_on = new_store(), threading.Event()
    upkeep = Upkeep()

    def put_file(source: str, path: str) -> Any:
        assert goes_on.wait(30)
        return original.put_file(source, path)

    watched = uploader(store, upkeep=upkeep, timeout=0.05)
    original = patch(store, put_file=put_file)
    for step in (1, 2, 3, 4):
        watched.offer(save(tmp_path, step, upkeep=upkeep))
    limit = time.monotonic() + 30
    while watched.is_busy:
        assert time.monotonic() < limit
        time.sleep(0.005)
    upkeep.verified.update(f"step_000000{step}" for step in (1, 2, 3, 4))

    retire(tmp_path, Ranks(None), step=4, keep_last=2, upkeep=upkeep)

    (overdue,) = watched.outcomes()
    assert overdue.step == 1
    assert "did not end within" in overdue.error
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["1", "3", "4"]
    watched.timeout = 30
    goes_on.set()
    ended(watched)
    assert [(each.step, each.error) for each in watched.outcomes()] == [(1, ""), (4, "")]
    assert store.steps() == ([4, 1], [])
    assert upkeep.uploading == set()


def test_an_upload_whose_folder_is_removed_is_given_up(tmp_path: Path) -> None:
    store = new_store()
    watched, folder = uploader(store), save(tmp_path, 1)

    def put_file(source: str, path: str) -> None:
        shutil.rmtree(folder)
        raise FileNotFoundError(source)

    patch(store, put_file=put_file)
    watched.offer(folder)
    ended(watched)
    assert watched.outcomes() == []


def test_a_checkpoint_set_aside_is_neither_fetched_nor_removed(tmp_path: Path) -> None:
    store = new_store()
    for step in (1, 2, 3):
        upload(store, save(tmp_path / "here", step))
    store.set_aside(2)
    retire_remote(store, step=3, keep=2, stays=lambda _: False, verified={1, 3}, check=unclaimed)
    assert store.steps() == ([3, 1], [2])
    assert sorted(store.names(2)) == ["__0_0.distcp", "rewound-manifest.json"]


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(ConfigError, match="needs s3fs for s3://") as caught:
        open_store("s3://bucket/glm", "a")
    assert caught.value.key == "checkpoint.url"
    assert caught.value.fix == "pip install 'glm-dist[remote]'"
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="Protocol not known: s4"):
        open_store("s4://bucket/glm", "a")


def test_messages_show_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    store = new_store()

    def refuse(*_: object) -> None:
        raise ValueError("https://u:p@host/b?X-Amz-Signature=1 signed by wJalrXUtnFEMI")

    patch(store, pipe_file=refuse)
    with pytest.raises(StoreError) as caught:
        store.write("x", b"")
    assert "ValueError: https://***@host/b?*** signed by ***" in str(caught.value)
    assert caught.value.__cause__ is None
    assert without_secrets("s3://bucket/a: plain") == "s3://bucket/a: plain"
