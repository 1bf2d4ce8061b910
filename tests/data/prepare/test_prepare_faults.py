"""Preparation where the system refuses: full disks, places that take no file, names of files."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from glm_dist.cli.main import main
from glm_dist.data.prepare import journal, readers
from glm_dist.data.prepare.prepare import prepare
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from glm_dist.errors import DataError
from tests.data.preparations import read_output, run, stopped, texts, write_jsonl


def full_disk(after: int, original: Callable[[int], None]) -> Callable[[int], None]:
    """Stand for ``os.fsync`` on a disk that is full after a number of calls."""
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    return fsync


# 14 blocks are saved by two calls each, and once more at the end; the last call is for the index.
@pytest.mark.parametrize("after", [0, 1, 7, 29, 30])
def test_a_full_disk_is_told_and_the_next_call_goes_on(
    tmp_path: Path, choice: TokenizerSpec, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(journal, "JOURNAL_SECONDS", 0.0)
    file = write_jsonl(tmp_path / "a.jsonl", texts(150))
    run([file], tmp_path / "whole", choice)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk(after, os.fsync))
        with pytest.raises(DataError, match="No space left on device") as caught:
            run([file], tmp_path / "cut", choice)
    assert "goes on where it stopped" in caught.value.fix
    assert sorted(path.name for path in tmp_path.glob("cut*")) == ["cut.partial"]
    run([file], tmp_path / "cut", choice)
    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")


def test_a_disk_that_is_full_at_the_manifest_leaves_no_part_of_it(
    tmp_path: Path, choice: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(20))
    original = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if not path.name.startswith("cut.json"):
            return original(path, data)
        original(path, data[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(DataError, match="No space left on device"):
            run([file], tmp_path / "cut", choice)
    assert not list(tmp_path.glob("cut.json*"))
    run([file], tmp_path / "cut", choice)
    run([file], tmp_path / "whole", choice)
    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")


@pytest.mark.parametrize(
    "output", ["", "  ", "out/", "out/.", "..", "out/text.bin", "out/text.idx"]
)
@pytest.mark.parametrize("command", ["prepare", "merge", "import-lazy"])
def test_outputs_that_are_no_prefix_are_refused(
    tmp_path: Path,
    choice: TokenizerSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    output: str,
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(5))
    run([file], tmp_path / "corpus", choice)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    commands = {
        "prepare": ["prepare", str(file), "--tokenizer", choice.path],
        "merge": ["data", "merge", f"{tmp_path}/corpus"],
        "import-lazy": ["data", "import-lazy", str(tmp_path), "--tokenizer", choice.path],
    }

    assert main([*commands[command], "--output", output]) == 2
    assert f"--output = {output!r}: expected the path of a corpus" in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("command", ["prepare", "merge"])
def test_a_place_that_takes_no_file_is_refused_to_root_as_well(
    tmp_path: Path, choice: TokenizerSpec, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(5))
    run([file], tmp_path / "corpus", choice)
    commands = {
        "prepare": ["prepare", str(file), "--tokenizer", choice.path],
        "merge": ["data", "merge", f"{tmp_path}/corpus"],
    }

    assert main([*commands[command], "--output", "/proc/x"]) == 2
    assert "Cannot write to /proc: " in capsys.readouterr().err


def replace_word(file: Path, old: str, new: str, *, last: bool) -> None:
    text = file.read_text()
    place = text.rindex(old) if last else text.index(old)
    file.write_text(text[:place] + new + text[place + len(old) :])
    later = time.time() + 5
    os.utime(file, (later, later))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("last", [False, True], ids=["text-done", "text-to-come"])
@pytest.mark.parametrize("number", [0, 1], ids=["file-done", "file-begun"])
def test_a_text_changed_after_a_kill_is_read_as_it_is_now(
    tmp_path: Path, choice: TokenizerSpec, number: int, last: bool
) -> None:
    files = [
        write_jsonl(tmp_path / f"{n}.jsonl", ["w900 w901", *texts(60, seed=n), "w900 w901"])
        for n in range(2)
    ]
    stopped(files, tmp_path / "cut", choice, after=9)  # 6 blocks a file
    replace_word(files[number], "w901", "w902", last=last)
    run(files, tmp_path / "cut", choice)

    run(files, tmp_path / "whole", choice)
    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")


@pytest.mark.usefixtures("small_blocks")
def test_files_that_were_only_touched_are_not_tokenised_again(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    files = [write_jsonl(tmp_path / f"{n}.jsonl", texts(60, seed=n)) for n in range(2)]
    reports: list[object] = []
    names, options = [str(file) for file in files], TextOptions()
    prepare(names, tmp_path / "whole", tokenizer=choice, options=options, report=reports.append)
    stopped(files, tmp_path / "cut", choice, after=9)
    later = time.time() + 5
    for file in files:
        os.utime(file, (later, later))
    rest: list[object] = []
    prepare(names, tmp_path / "cut", tokenizer=choice, options=options, report=rest.append)

    assert len(rest) == len(reports) - 9 > 0
    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")


@pytest.mark.usefixtures("small_blocks")
def test_a_folder_of_texts_may_hold_the_corpus(tmp_path: Path, choice: TokenizerSpec) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", texts(60))
    write_jsonl(folder / "z.json", texts(5, seed=1))
    run([folder], tmp_path / "whole", choice)
    stopped([folder], folder / "corpus", choice, after=2)
    first = run([folder], folder / "corpus", choice)

    assert read_output(folder / "corpus")[:2] == read_output(tmp_path / "whole")[:2]
    assert run([folder], folder / "corpus", choice).was_complete
    # Another corpus in that folder is no text either, whichever way its manifest is named.
    second = run([folder / "*.json*", folder / "corpus.json"], folder / "more", choice)
    assert second.manifest.documents == first.manifest.documents == 65
    assert run([folder], folder / "corpus", choice).was_complete


def test_a_manifest_alone_is_no_text(tmp_path: Path, choice: TokenizerSpec) -> None:
    run([write_jsonl(tmp_path / "a.jsonl", texts(5))], tmp_path / "corpus", choice)

    with pytest.raises(DataError, match="no text file"):
        run([tmp_path / "corpus.json"], tmp_path / "other", choice)
