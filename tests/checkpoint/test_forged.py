"""A stranger's checkpoint runs nothing, opens nothing outside its folder, and costs no memory."""

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glm_dist.checkpoint.load import choose_checkpoint, find_checkpoint, load_tensors
from glm_dist.checkpoint.manifest import DamagedCheckpointError
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.config.load import load_config_file
from glm_dist.errors import CheckpointError, ConfigError
from tests.checkpoint.forged import Command, hostile_pickle, replace_file, rewrite_manifest
from tests.messages import Says
from tests.old_runs.restore import restore
from tests.train.jobs import glm_dist_command

DATA = "__0_0.distcp"


def save(directory: Path, step: int) -> Path:
    return save_checkpoint(
        directory,
        step=step,
        tensors={"model.w": torch.arange(12.0).view(3, 4)},
        extra={},
        layout={},
        keep_last=5,
    )


def damage_of(action: Callable[[], object]) -> DamagedCheckpointError:
    with pytest.raises(DamagedCheckpointError) as caught:
        action()
    return caught.value


def weight(manifest: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = manifest["tensors"]["model.w"]
    return record


def enlarge(manifest: dict[str, Any]) -> None:
    weight(manifest)["shape"] = [3_000_000_000, 4_000_000_000]
    weight(manifest)["boxes"][0][1] = [3_000_000_000, 4_000_000_000]


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no files": (lambda m: m.pop("files"), "no field files"),
    "a new field": (lambda m: m.update(more=1), "unknown field 'more'"),
    "step as text": (lambda m: m.update(step="2"), "step that is no number"),
    "step as a switch": (lambda m: m.update(step=True), "step that is no number"),
    "tensors as a list": (lambda m: m.update(tensors=[]), "tensors that is no table"),
    "another folder": (
        lambda m: m["files"].update({"../x": m["files"][DATA]}),
        "file '../x', which is no name",
    ),
    "a root": (lambda m: m["files"].update({"/dev/zero": m["files"][DATA]}), "file '/dev/zero'"),
    "its own folder": (lambda m: m["files"].update({".": m["files"][DATA]}), "file '.'"),
    "a hash of two digits": (lambda m: m["files"][DATA].update(sha256="ab"), "without a SHA-256"),
    "a negative size": (lambda m: m["files"][DATA].update(num_bytes=-1), "num_bytes"),
    "a dtype of Python": (lambda m: weight(m).update(dtype="load"), "of dtype 'load'"),
    "a shape that is too large": (
        lambda m: weight(m).update(shape=[10**12, 4]),
        "12 of the 4000000000000 elements",
    ),
    "a box that is too large": (enlarge, "larger than its"),
    "a box outside of its file": (
        lambda m: weight(m)["boxes"][0].__setitem__(3, 10**9),
        "outside of '__0_0.distcp'",
    ),
    "a box in no file": (
        lambda m: weight(m)["boxes"][0].__setitem__(2, "../manifest.json"),
        "outside of '../manifest.json'",
    ),
    "the same box again": (
        lambda m: weight(m).update(shape=[6, 4], boxes=weight(m)["boxes"] * 2),
        "which overlap",
    ),
    "another step": (lambda m: m.update(step=9), "step_0000002 holds step 9"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_manifest_is_damage_and_the_checkpoint_before_it_is_used(
    tmp_path: Path, name: str
) -> None:
    change, words = FORGERIES[name]
    save(tmp_path, 1)
    rewrite_manifest(save(tmp_path, 2), change)

    assert words in str(damage_of(lambda: choose_checkpoint(tmp_path, 2)))
    info = find_checkpoint(tmp_path)

    assert info is not None
    assert info.manifest.step == 1


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"format_version": 2, "step": ' + "9" * 10_000 + "}", '{"a": 1e999}'],
    ids=["lists in lists", "a number of 10000 digits", "infinity"],
)
def test_json_that_no_run_writes_is_damage(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError):
        choose_checkpoint(tmp_path, 2)


def as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_link(path: Path) -> None:
    target = path.parent.parent / "moved"
    target.write_bytes(b"x")
    path.symlink_to(target)


@pytest.mark.parametrize("file", [DATA, "manifest.json"])
@pytest.mark.parametrize("make", [as_device, as_link, os.mkfifo], ids=["device", "link", "pipe"])
def test_what_is_no_regular_file_is_never_opened(
    tmp_path: Path, file: str, make: Callable[[Path], None]
) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    (folder / file).unlink()
    make(folder / file)

    error = damage_of(lambda: choose_checkpoint(tmp_path, 2))

    assert f"{file} is a link" in str(error) or f"{file} is no regular file" in str(error)


def other_content(name: str, marker: Path) -> bytes:
    """Content of a data file that torch.save, or a forger, could have written."""
    stream = io.BytesIO()
    match name:
        case "code":
            torch.save({"a": Command(f"touch {marker}; echo EXECUTED")}, stream)
        case "another shape":
            torch.save(torch.zeros(1).expand(1000, 1000), stream)
        case "no tensor":
            torch.save({"a": 1}, stream)
        case "no archive":
            stream.write(hostile_pickle(marker))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["code", "another shape", "no tensor", "no archive"])
def test_a_data_file_holds_nothing_but_its_boxes(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path, 1)
    content = other_content(name, tmp_path / "marker")
    replace_file(folder, DATA, content)

    def place(manifest: dict[str, Any]) -> None:
        weight(manifest)["boxes"][0][3:] = [0, len(content)]

    rewrite_manifest(folder, place)
    info = choose_checkpoint(tmp_path, 1)

    error = damage_of(lambda: load_tensors(info, {"model.w": torch.zeros(3, 4)}))

    assert f"{DATA} holds something else than a box of model.w" in str(error)
    assert not (tmp_path / "marker").exists()
    assert "EXECUTED" not in capfd.readouterr().out


def test_an_archive_that_grows_when_it_is_unpacked_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, 1)
    packed = io.BytesIO()
    with zipfile.ZipFile(folder / DATA) as plain, zipfile.ZipFile(packed, "w", 8) as archive:
        for entry in plain.namelist():
            archive.writestr(entry, plain.read(entry) + bytes(10**6))
    replace_file(folder, DATA, packed.getvalue())
    rewrite_manifest(
        folder,
        lambda manifest: weight(manifest)["boxes"][0].__setitem__(4, len(packed.getvalue())),
    )
    calls: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *arguments, **_: calls.append(arguments))
    info = choose_checkpoint(tmp_path, 1)

    damage_of(lambda: load_tensors(info, {"model.w": torch.zeros(3, 4)}))

    assert calls == []


def old_checkpoint(folder: Path) -> Path:
    """A checkpoint of format version 1, whose boxes are a pickle."""
    return restore("v1", folder) / "spans" / "checkpoints" / "step_0000004"


def test_a_pickle_of_an_old_checkpoint_runs_nothing(
    tmp_path: Path, says: Says, capfd: pytest.CaptureFixture[str]
) -> None:
    old = old_checkpoint(tmp_path)
    replace_file(old, ".metadata", hostile_pickle(tmp_path / "marker"))

    error = damage_of(lambda: choose_checkpoint(old.parent, 4))

    says(error)
    assert not (tmp_path / "marker").exists()
    assert "EXECUTED" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(7),
        pickle.dumps({"state_dict_metadata": {}}),
        b"\x80\x04r\xff\xff\xff\x7f.",  # stores at index 2^31 - 1 of a memo
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",  # announces 2^60 bytes
        b"",
    ],
    ids=["a number", "a dictionary", "a giant memo", "giant bytes", "nothing"],
)
def test_any_other_pickle_of_an_old_checkpoint_is_damage(tmp_path: Path, content: bytes) -> None:
    old = old_checkpoint(tmp_path)
    replace_file(old, ".metadata", content)
    assert ".metadata" in str(damage_of(lambda: choose_checkpoint(old.parent, 4)))


def test_a_save_writes_no_pickle_of_the_boxes_and_an_old_checkpoint_becomes_a_new_one(
    tmp_path: Path,
) -> None:
    old = old_checkpoint(tmp_path)
    info = choose_checkpoint(old.parent, 4)
    tensors = {
        name: torch.zeros(record.shape, dtype=getattr(torch, record.dtype))
        for name, record in info.manifest.tensors.items()
    }
    load_tensors(info, tensors)
    new = save_checkpoint(
        tmp_path / "new", step=4, tensors=tensors, extra={}, layout={}, keep_last=1
    )
    assert sorted(path.name for path in new.iterdir()) == [DATA, "manifest.json"]

    again = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load_tensors(choose_checkpoint(tmp_path / "new", 4), again)

    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert any(tensor.any() for tensor in again.values())


def pickled(run: Path, marker: Path) -> None:
    step = run / "checkpoints" / "step_0000004"
    replace_file(step, ".metadata", hostile_pickle(marker))


def configured(run: Path, marker: Path) -> None:
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("name: ", "name: ${oc.env:HOME}", 1))


def piped(run: Path, marker: Path) -> None:
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (pickled, "All checkpoints in"),
        (configured, "refers to another value in run.name"),
        (piped, "config.yaml cannot be read"),
    ],
    ids=["pickle", "environment", "pipe"],
)
def test_generate_runs_and_shows_nothing_of_a_forged_run(
    tmp_path: Path, forge: Callable[[Path, Path], None], words: str
) -> None:
    run = restore("v1", tmp_path) / "spans"
    marker = tmp_path / "marker"
    forge(run, marker)
    shutil.rmtree(run / "tokenizer", ignore_errors=True)

    done = glm_dist_command("generate", str(run), "a [MASK] b")

    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not marker.exists()
    assert "EXECUTED" not in done.stdout + done.stderr
    assert os.environ["HOME"] not in done.stderr.replace(str(tmp_path), "")


def test_a_configuration_that_grows_without_end_is_not_read(tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(["a0: &a0 [0]", *levels]))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config_file(file)
