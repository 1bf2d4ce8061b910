"""A manifest comes back as it was written, and refuses what it does not understand."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from glm_dist.checkpoint.manifest import (
    BoxRecord,
    DamagedCheckpointError,
    FileRecord,
    Manifest,
    TensorRecord,
    find_problems,
    read_manifest,
)
from glm_dist.errors import CheckpointError
from tests.messages import Says
from tests.old_runs.restore import HERE

MANIFEST = Manifest(
    step=7,
    layout={"tp": 2, "pp": 1},
    extra={"rows": 3, "learning_rate": 0.1, "corpora": ["a", None], "done": False},
    tensors={
        "model.w": TensorRecord(
            shape=(1, 3),
            dtype="bool",
            boxes=(BoxRecord(offsets=(0, 0), sizes=(1, 3), file="a.bin", start=0, num_bytes=3),),
        )
    },
    files={"a.bin": FileRecord(num_bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())},
)


def write(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path, MANIFEST.to_json())
    assert read_manifest(tmp_path) == MANIFEST


def test_an_unknown_format_is_refused_with_a_hint_and_not_called_damage(
    tmp_path: Path, says: Says
) -> None:
    write(tmp_path, replace(MANIFEST, format_version=99).to_json())
    with pytest.raises(CheckpointError) as caught:
        read_manifest(tmp_path)
    assert (caught.value.key, caught.value.value) == ("format_version", 99)
    says(caught.value)
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize("version", [1, 99])
def test_the_version_of_the_configuration_closes_no_checkpoint(
    tmp_path: Path, version: int
) -> None:
    old = replace(MANIFEST, config_version=version)
    write(tmp_path, old.to_json())
    assert read_manifest(tmp_path) == old


@pytest.mark.parametrize(("run", "step"), [("spans", 4), ("mixed", 2)])
def test_a_manifest_of_version_1_is_read(run: str, step: int) -> None:
    folder = HERE / "v1" / run / "checkpoints" / f"step_{step:07d}"
    assert read_manifest(folder).step == step


@pytest.mark.parametrize("text", ["", "[]", '{"step": 1', "\x00\x01"], ids=repr)
def test_what_is_no_manifest_is_damage(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_changed_field_is_damage(tmp_path: Path) -> None:
    content = json.loads(MANIFEST.to_json())
    content["step"] = 8
    write(tmp_path, json.dumps(content))
    with pytest.raises(DamagedCheckpointError, match="changed after it was written"):
        read_manifest(tmp_path)


def test_numbers_json_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(MANIFEST, extra={"loss": float("nan")}).to_json()


def test_file_problems_are_told_apart(tmp_path: Path) -> None:
    files = dict.fromkeys(("changed", "short", "missing", "good"), MANIFEST.files["a.bin"])
    (tmp_path / "changed").write_bytes(b"abd")
    (tmp_path / "short").write_bytes(b"ab")
    (tmp_path / "good").write_bytes(b"abc")
    assert find_problems(tmp_path, files, read_content=True) == [
        "changed was changed: its SHA-256 is not the one in the manifest",
        "missing is missing",
        "short has 2 of 3 bytes",
    ]
    assert len(find_problems(tmp_path, files, read_content=False)) == 2
