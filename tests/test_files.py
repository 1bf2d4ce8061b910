"""Files are whole or absent, locks hold between processes, and unusable paths are named."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from glm_dist import files
from glm_dist.files import (
    FileError,
    LockedError,
    block_hashes,
    ensure_writable,
    exists,
    is_dir,
    is_file,
    lock_file,
    replacing,
    sha256_of,
    write_atomically,
)


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    """Make a folder, and become a user who is not root: to root, permissions do not apply."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chmod(folder, 0o777)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


def test_questions_about_a_path_have_answers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dead").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    answers = {
        name: (exists(tmp_path / name), is_file(tmp_path / name), is_dir(tmp_path / name))
        for name in ("file", "link", "dead", "loop", "missing", "file/below", ".", "nul\0l")
    }

    nothing = (False, False, False)
    assert answers == {
        "file": (True, True, False),
        "link": (True, True, False),
        ".": (True, False, True),
        **dict.fromkeys(("dead", "loop", "missing", "file/below", "nul\0l"), nothing),
    }


@pytest.mark.parametrize("question", [exists, is_file, is_dir])
def test_a_folder_that_may_not_be_entered_is_said(
    folder_of_nobody: Path, question: Callable[[Path], bool]
) -> None:
    closed = folder_of_nobody / "closed"
    closed.mkdir()
    closed.chmod(0)

    with pytest.raises(FileError, match="this user may not enter") as caught:
        question(closed / "file")
    assert caught.value.fix == f"namei -l {closed}/file"


@pytest.mark.parametrize("question", [exists, is_file, is_dir])
def test_a_name_that_is_too_long_is_said(tmp_path: Path, question: Callable[[Path], bool]) -> None:
    with pytest.raises(FileError, match="its name is too long") as caught:
        question(tmp_path / ("a" * 300))
    assert len(str(caught.value)) < 300


def test_a_folder_that_takes_no_file_is_said(folder_of_nobody: Path) -> None:
    (folder_of_nobody / "read_only").mkdir()
    (folder_of_nobody / "read_only").chmod(0o555)
    (folder_of_nobody / "file").write_text("")

    for folder in ("read_only", "read_only/new", "file/new"):
        with pytest.raises(FileError, match=f"Cannot write to .*/{folder}: ") as caught:
            ensure_writable(
                folder_of_nobody / folder, key="--output", create=folder != "read_only/new"
            )
        assert caught.value.key == "--output"


def test_a_writable_folder_is_made_only_where_asked(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "a" / "b", key="--output")
    assert not (tmp_path / "a").exists()

    ensure_writable(tmp_path / "a" / "b", key="--output", create=True)
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_a_part(path: Path, content: bytes) -> None:
        path.write_text(content[:1].decode())
        fail()

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(Path, "write_bytes", write_a_part)
        else:
            patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(file, b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_content_is_on_the_disk_before_its_name_and_the_name_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def note_rename(source: Path, target: Path) -> None:
        calls.append(f"name {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_rename)
    with replacing(tmp_path / "a", tmp_path / "b") as (first, second):
        second.write_text("b")
        first.write_text("a")

    synced = [f"fsync {first.name}", f"fsync {second.name}"]
    assert calls == [*synced, "name a", "name b", f"fsync {tmp_path.name}"]
    assert (tmp_path / "a").read_text() + (tmp_path / "b").read_text() == "ab"


def test_a_lock_keeps_other_processes_out_and_names_the_holder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from glm_dist.files import lock_file, LockedError\n"
        "try: lock_file(Path(sys.argv[1])); print('free')\n"
        "except LockedError as error: print(error.holder)"
    )

    def other_process() -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "lock")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    lock = lock_file(tmp_path / "lock")
    assert lock is not None
    assert other_process() == f"host {os.uname().nodename}, process {os.getpid()}"
    lock.close()
    assert other_process() == "free"


def test_a_file_system_without_locks_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "lockf", refuse)

    assert lock_file(tmp_path / "lock") is None
    assert "could not lock" in caplog.text
    assert not issubclass(LockedError, OSError)  # or it would pass for a full disk


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 5])
@pytest.mark.parametrize("block", [1000, 2**20, 2**20 + 7, 2**30])
def test_hashes_are_those_of_the_content(tmp_path: Path, size: int, block: int) -> None:
    content = (b"0123456789abcdef!" * (size // 17 + 1))[:size]
    (tmp_path / "file").write_bytes(content)

    assert sha256_of(tmp_path / "file") == sha256(content).hexdigest()
    assert block_hashes(tmp_path / "file", block) == [
        sha256(content[at : at + block]).hexdigest() for at in range(0, size, block)
    ]
