"""Preparation where the system refuses: full disks, places that take no file, names of files."""

import errno
import gzip
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm_dist.cli.main import main
from glm_dist.data.corpus.manifest import write_manifest
from glm_dist.data.prepare import prepare as prepare_module
from glm_dist.data.prepare import readers
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from glm_dist.errors import DataError
from tests.data.preparations import read_output, run, texts, write_jsonl


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


# Each of 4 shards takes a call for the file and one for the folder; then come the index, by itself
# and with the tokens, the folder again, and the manifest with its folder.
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("after", [0, 1, 5, 8, 9, 11, 12])
def test_a_full_disk_is_said_and_the_next_call_goes_on(
    tmp_path: Path, choice: TokenizerSpec, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(150))
    reports: list[object] = []
    run([file], tmp_path / "whole", choice, report=reports.append)
    rest: list[object] = []

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk(after, os.fsync))
        with pytest.raises(DataError, match="No space left on device") as caught:
            run([file], tmp_path / "cut", choice)
    assert "goes on where it stopped" in caught.value.fix
    assert Path(tmp_path / "cut.partial").is_dir()
    assert not list(tmp_path.glob("cut*.tmp"))
    run([file], tmp_path / "cut", choice, report=rest.append)
    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")
    assert (len(rest) == 0) == (after >= 8)
    assert (len(rest) < len(reports)) == (after >= 1)


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
    assert f"--output {output!r} is not the prefix of a corpus" in capsys.readouterr().err
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


def later(*files: Path) -> None:
    """Give files the time of a later write."""
    for file in files:
        os.utime(file, (time.time() + 5,) * 2)


def damaged(files: list[Path], output: Path, choice: TokenizerSpec) -> None:
    """Prepare files of which the last cannot be read to its end, then repair that one."""
    content = files[-1].read_bytes()
    files[-1].write_bytes(content[:-20])
    with pytest.raises(DataError, match=re.escape(str(files[-1]))):
        run(files, output, choice)
    files[-1].write_bytes(content)
    later(files[-1])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files of JSON lines, and one more that is compressed; about 16 kB of text in each."""
    files = [write_jsonl(tmp_path / f"{n}.jsonl", texts(120, seed=n)) for n in range(3)]
    packed = tmp_path / "2.jsonl.gz"
    packed.write_bytes(gzip.compress(files[2].read_bytes()))
    return [*files[:2], packed]


def files_read(
    inputs: list[Path], output: Path, choice: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> set[str]:
    """Prepare, and list the names of the files that are read for it."""
    names = set()
    original = prepare_module.read_blocks

    def read_blocks(file: Path, *arguments: Any, **keywords: Any) -> Iterator[readers.Block]:
        names.add(file.name)
        return original(file, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "read_blocks", read_blocks)
        run(inputs, output, choice)
    return names


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "then", ["repaired", "added", "left out", "changed", "touched", "absolute"]
)
def test_files_that_were_done_stay_done(
    tmp_path: Path,
    files: list[Path],
    choice: TokenizerSpec,
    monkeypatch: pytest.MonkeyPatch,
    then: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged([Path(file.name) for file in files], tmp_path / "cut", choice)
    inputs, expected = files, {"2.jsonl.gz"}
    match then:
        case "added":
            inputs = [files[0], write_jsonl(tmp_path / "more.jsonl", texts(9)), *files[1:]]
            expected = {"2.jsonl.gz", "more.jsonl"}
        case "left out":
            inputs, expected = files[1:], {"2.jsonl.gz"}
        case "changed":
            files[0].write_text(files[0].read_text().replace("w5", "w6", 1))
            later(files[0])
            expected = {"2.jsonl.gz", "0.jsonl"}
        case "touched":
            later(*files)
    if then != "absolute":
        inputs = [Path(file.name) for file in inputs]

    assert files_read(inputs, tmp_path / "cut", choice, monkeypatch) == expected
    run(inputs, tmp_path / "whole", choice)
    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.usefixtures("small_blocks")
def test_other_options_take_nothing_of_what_was_done(
    tmp_path: Path, files: list[Path], choice: TokenizerSpec
) -> None:
    for file in files[:2]:
        file.write_text(file.read_text().replace("text", "body"))
    options = TextOptions(text_key="body")
    run(files[:2], tmp_path / "whole", choice, options=options, max_bad_lines=0)
    with pytest.raises(DataError, match="lines hold no document"):
        run(files[:2], tmp_path / "cut", choice)
    run(files[:2], tmp_path / "cut", choice, options=options, max_bad_lines=0)

    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")


@pytest.mark.usefixtures("small_blocks")
def test_a_shard_that_a_power_failure_cut_short_is_made_again(
    tmp_path: Path, files: list[Path], choice: TokenizerSpec
) -> None:
    damaged(files, tmp_path / "cut", choice)
    cut = sorted((tmp_path / "cut.partial").glob("*.shard"))
    for number, shard in enumerate(cut):
        content = shard.read_bytes()
        shard.write_bytes([content[:-3], bytes(len(content)), b"", content[5:]][number % 4])
    run(files, tmp_path / "cut", choice)

    run(files, tmp_path / "whole", choice)
    assert len(cut) >= 4
    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(20))

    def grow(progress: object) -> None:
        with file.open("a") as stream:
            stream.write("\n")

    with pytest.raises(DataError, match="was written to while it was being read"):
        run([file], tmp_path / "corpus", choice, report=grow)


def test_a_finished_corpus_is_known_without_its_text(
    tmp_path: Path, files: list[Path], choice: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(files, tmp_path / "corpus", choice)
    (tmp_path / "moved").mkdir()
    moved = [file.rename(tmp_path / "moved" / file.name) for file in files]
    again, elsewhere = (run(each, tmp_path / "corpus", choice) for each in (files, moved))

    assert again.was_complete
    assert elsewhere.was_complete
    assert first.manifest == again.manifest == elsewhere.manifest
    with pytest.raises(DataError, match="names no text file"):
        run(files[:2], tmp_path / "corpus", choice)
    (tmp_path / "other.jsonl").write_text(moved[0].read_text().replace("w", "v"))
    os.utime(tmp_path / "other.jsonl", (0, 0))  # as old as can be, and of equal size
    with pytest.raises(DataError, match=r"the text of .*other\.jsonl"):
        run([tmp_path / "other.jsonl", *moved[1:]], tmp_path / "corpus", choice)
    with pytest.raises(DataError, match="3 files, now 2"):
        run(moved[:2], tmp_path / "corpus", choice)


def test_a_file_that_is_named_twice_is_read_once(
    tmp_path: Path, files: list[Path], choice: TokenizerSpec
) -> None:
    (tmp_path / "link.jsonl").symlink_to(files[0])

    outcome = run([files[0], tmp_path / "link.jsonl", files[0]], tmp_path / "corpus", choice)
    assert outcome.manifest.documents == 120


def test_a_corpus_of_the_first_format_is_known_by_its_times(
    tmp_path: Path, files: list[Path], choice: TokenizerSpec
) -> None:
    now = run(files, tmp_path / "corpus", choice).manifest
    sources = [{**source, "sha256": "of hashes of blocks"} for source in now.sources]
    write_manifest(tmp_path / "corpus", replace(now, format=1, sources=sources))

    assert run(files, tmp_path / "corpus", choice).was_complete
    later(files[0])
    with pytest.raises(DataError, match=r"the text of .*0\.jsonl"):
        run(files, tmp_path / "corpus", choice)


@pytest.mark.usefixtures("small_blocks")
def test_a_folder_of_texts_may_hold_the_corpus(tmp_path: Path, choice: TokenizerSpec) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", texts(60))
    write_jsonl(folder / "z.json", texts(5, seed=1))
    run([folder], tmp_path / "whole", choice)
    with pytest.raises(DataError, match="There is no text in"):
        run([folder], folder / "corpus", choice, options=TextOptions(text_key="body"))
    assert (folder / "corpus.partial").is_dir()
    first = run([folder], folder / "corpus", choice)

    assert read_output(folder / "corpus")[:2] == read_output(tmp_path / "whole")[:2]
    assert run([folder], folder / "corpus", choice).was_complete
    # Another corpus in that folder is no text either, whichever way its manifest is named.
    second = run([folder / "*.json*", folder / "corpus.json"], folder / "more", choice)
    assert second.manifest.documents == first.manifest.documents == 65
    assert run([folder], folder / "corpus", choice).was_complete


def test_a_manifest_alone_is_no_text(tmp_path: Path, choice: TokenizerSpec) -> None:
    run([write_jsonl(tmp_path / "a.jsonl", texts(5))], tmp_path / "corpus", choice)

    with pytest.raises(DataError, match="names no text file"):
        run([tmp_path / "corpus.json"], tmp_path / "other", choice)
