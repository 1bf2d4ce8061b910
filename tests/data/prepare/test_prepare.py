"""Preparation: same bytes for any number of workers, bad lines, corpora that are there."""

import bz2
import gzip
import json
import lzma
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from backports import zstd

from glm_dist.cli.main import main
from glm_dist.data.corpus.indexed import open_indexed
from glm_dist.data.prepare import readers
from glm_dist.data.prepare.inputs import select_inputs
from glm_dist.data.prepare.readers import TextOptions, TextUnit
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.errors import DataError
from tests.data.corpora import CLS, EOS
from tests.data.preparations import read_output, run, texts, write_jsonl

FRAME = zstd.compress(b"".join(b'{"text": "w%d"}\n' % n for n in range(9000)))


def documents_in(prefix: Path) -> list[list[int]]:
    corpus = open_indexed(prefix)
    return [corpus.document(number).tolist() for number in range(corpus.num_documents)]


def expected(choice: TokenizerSpec, documents: list[str]) -> list[list[int]]:
    tokenizer = open_tokenizer(choice)
    return [[CLS, *tokenizer.encode_document(text), EOS] for text in documents]


def test_documents_come_out_in_order_opened_and_closed(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    first, second = texts(30), texts(20, seed=1)
    files = [
        write_jsonl(tmp_path / "b.jsonl", first),
        write_jsonl(tmp_path / "a.jsonl", second),
    ]
    outcome = run(files, tmp_path / "out" / "corpus", choice)

    assert documents_in(tmp_path / "out" / "corpus") == expected(choice, first + second)
    assert outcome.manifest.documents == 50
    assert [source["documents"] for source in outcome.manifest.sources] == [30, 20]


def test_every_format_gives_the_same_documents(tmp_path: Path, choice: TokenizerSpec) -> None:
    documents = texts(40)
    plain = write_jsonl(tmp_path / "a.jsonl", documents).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    # Two frames, as parallel compressors write them.
    half = len(plain) // 2
    compress = zstd.compress
    (tmp_path / "a.jsonl.zst").write_bytes(compress(plain[:half]) + compress(plain[half:]))
    (tmp_path / "a.txt").write_text("\n".join(documents))
    (tmp_path / "a2.txt").write_text("\n\n".join(documents) + "\n\n\n")
    table = pyarrow.table({"text": documents, "other": list(range(40))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)

    wanted = expected(choice, documents)
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.parquet"):
        run([tmp_path / name], tmp_path / f"out-{name}", choice)
        assert documents_in(tmp_path / f"out-{name}") == wanted, name
    by_paragraph = TextOptions(text_unit=TextUnit.paragraph)
    run([tmp_path / "a2.txt"], tmp_path / "out2", choice, options=by_paragraph)
    assert documents_in(tmp_path / "out2") == wanted
    whole = TextOptions(text_unit=TextUnit.file)
    run([tmp_path / "a.txt"], tmp_path / "out3", choice, options=whole)
    assert len(documents_in(tmp_path / "out3")) == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_do_not_change_a_byte(
    tmp_path: Path, choice: TokenizerSpec, num_workers: int
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(300))
    run([file], tmp_path / "one", choice)
    run([file], tmp_path / "many", choice, num_workers=num_workers)

    assert read_output(tmp_path / "many") == read_output(tmp_path / "one")


@pytest.mark.usefixtures("small_blocks")
def test_block_size_does_not_change_the_documents(
    tmp_path: Path, choice: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = texts(200)
    files = [write_jsonl(tmp_path / "a.jsonl", documents)]
    (tmp_path / "b.txt").write_text("\n \n".join(documents))
    files.append(tmp_path / "b.txt")
    options = TextOptions(text_unit=TextUnit.paragraph)
    run(files, tmp_path / "small", choice, options=options)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1 << 20)
    run(files, tmp_path / "large", choice, options=options)

    assert documents_in(tmp_path / "small") == documents_in(tmp_path / "large")


def test_a_finished_corpus_is_left_alone(tmp_path: Path, choice: TokenizerSpec) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(10))
    first = run([file], tmp_path / "corpus", choice)
    before = (tmp_path / "corpus.bin").stat().st_mtime_ns
    second = run([file], tmp_path / "corpus", choice)

    assert not first.was_complete
    assert second.was_complete
    assert second.manifest == first.manifest
    assert (tmp_path / "corpus.bin").stat().st_mtime_ns == before


def test_a_touched_input_is_read_again_and_a_changed_one_is_told(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", ["w10 w11", "w12"])
    run([file], tmp_path / "corpus", choice)
    later = time.time() + 5
    os.utime(file, (later, later))
    assert run([file], tmp_path / "corpus", choice).was_complete
    write_jsonl(file, ["w10 w11", "w13"])
    os.utime(file, (later, later))

    with pytest.raises(DataError, match=r"the text of .*a\.jsonl"):
        run([file], tmp_path / "corpus", choice)


def test_another_corpus_is_replaced_only_when_asked(tmp_path: Path, choice: TokenizerSpec) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(10))
    run([file], tmp_path / "corpus", choice)
    other = write_jsonl(tmp_path / "b.jsonl", texts(5, seed=2))

    with pytest.raises(DataError, match="differs in the text of"):
        run([other], tmp_path / "corpus", choice)
    run([other], tmp_path / "corpus", choice, overwrite=True)
    assert len(documents_in(tmp_path / "corpus")) == 5


def test_bad_lines_are_skipped_and_told_with_file_and_line(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    lines = [
        b'{"text": "w10 w11"}',
        b'{"text": "w12',
        b'{"title": "w13"}',
        b"",
        b'{"text": 5}',
        b'{"text": "\xff"}',
        b'["text"]',
        b'{"text": ""}',
        b'{"text": "w14"}',
    ]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join(lines))
    outcome = run([file], tmp_path / "corpus", choice)

    assert [(bad.file, bad.line) for bad in outcome.bad_lines.first] == [
        (str(file), number) for number in (2, 3, 5, 6, 7)
    ]
    assert len(documents_in(tmp_path / "corpus")) == 2
    source = outcome.manifest.sources[0]
    assert (source["bad_lines"], source["blank"], source["lines"]) == (5, 1, 9)


@pytest.mark.usefixtures("small_blocks")
def test_line_numbers_go_on_over_blocks(tmp_path: Path, choice: TokenizerSpec) -> None:
    documents = [json.dumps({"text": text}) for text in texts(200)]
    documents[150] = "no json"
    (tmp_path / "a.jsonl").write_text("\n".join(documents))
    outcome = run([tmp_path / "a.jsonl"], tmp_path / "corpus", choice)

    assert [bad.line for bad in outcome.bad_lines.first] == [151]


def test_rows_of_parquet_without_text_are_told(tmp_path: Path, choice: TokenizerSpec) -> None:
    table = pyarrow.table({"text": ["w10", None, "w11"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    outcome = run([tmp_path / "a.parquet"], tmp_path / "corpus", choice)

    assert [(bad.line, bad.reason) for bad in outcome.bad_lines.first] == [
        (2, "column 'text' is no text")
    ]
    assert [document[1] for document in documents_in(tmp_path / "corpus")] == [10, 11]


def test_a_missing_column_is_named(tmp_path: Path, choice: TokenizerSpec) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["w10"]}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match="no column 'text'"):
        run([tmp_path / "a.parquet"], tmp_path / "corpus", choice)


def test_a_corpus_of_another_tool_is_not_replaced_unasked(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", texts(10))
    (tmp_path / "corpus.bin").write_bytes(b"theirs")

    with pytest.raises(DataError, match="exists already and has no manifest"):
        run([file], tmp_path / "corpus", choice)
    assert (tmp_path / "corpus.bin").read_bytes() == b"theirs"


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_manifest_never_replaces_an_input(
    tmp_path: Path, choice: TokenizerSpec, overwrite: bool
) -> None:
    file = write_jsonl(tmp_path / "a.json", ["w10"])

    with pytest.raises(DataError, match="would replace the input"):
        run([file], tmp_path / "a", choice, overwrite=overwrite)
    assert file.read_text() == '{"text": "w10"}\n'


def test_frames_of_zstandard_are_read_end_to_end(tmp_path: Path, choice: TokenizerSpec) -> None:
    frames = [zstd.compress(b'{"text": "w%d"}\n' % n) for n in (10, 11, 12)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    run([tmp_path / "a.jsonl.zst"], tmp_path / "corpus", choice)

    assert [document[1] for document in documents_in(tmp_path / "corpus")] == [10, 11, 12]


def test_too_many_bad_lines_stop(tmp_path: Path, choice: TokenizerSpec) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "w10"}\nno\nno\n')

    with pytest.raises(DataError, match=r"2 lines hold no document.*\n.*a\.jsonl:2: not JSON"):
        run([tmp_path / "a.jsonl"], tmp_path / "corpus", choice, max_bad_lines=1)
    assert not (tmp_path / "corpus.bin").exists()
    run([tmp_path / "a.jsonl"], tmp_path / "corpus", choice, max_bad_lines=2)
    assert len(documents_in(tmp_path / "corpus")) == 1


def test_half_a_surrogate_pair_is_a_bad_line_and_a_whole_one_is_text(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    lines = ["w10 \\ud83d\\ude00 w11", "w10 \\ud800 w11"]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))

    with pytest.raises(DataError, match=r"a\.jsonl:2: holds half of a surrogate pair"):
        run([tmp_path / "a.jsonl"], tmp_path / "corpus", choice, max_bad_lines=0)
    run([tmp_path / "a.jsonl"], tmp_path / "corpus", choice, max_bad_lines=1)
    assert len(documents_in(tmp_path / "corpus")) == 1


def test_text_without_words_is_refused(tmp_path: Path, choice: TokenizerSpec) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n')

    with pytest.raises(DataError, match="no text in"):
        run([tmp_path / "a.jsonl"], tmp_path / "corpus", choice)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b"\x1f\x8b broken", "not readable"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "w10"}\n' * 500)[:-20], "not readable"),
        ("a.jsonl.zst", b"broken", "not readable"),
        *(
            ("a.jsonl.zst", content, "not readable: ")
            for content in (FRAME[:-1], FRAME[:-999], FRAME[:3], FRAME + FRAME[:-1], FRAME + b"x")
        ),
        ("a.parquet", b"broken", "Parquet"),
        ("a.pdf", b"", "suffix '.pdf'"),
    ],
    ids=[
        "gzip",
        "gzip-cut-short",
        "zstd",
        "zstd-without-its-last-byte",
        "zstd-cut-short",
        "zstd-cut-in-its-header",
        "zstd-cut-in-its-second-frame",
        "zstd-with-garbage-at-its-end",
        "parquet",
        "unknown",
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, choice: TokenizerSpec, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message) as caught:
        run([tmp_path / name], tmp_path / "corpus", choice)
    assert name in caught.value.key


def test_missing_inputs_are_named(tmp_path: Path, choice: TokenizerSpec) -> None:
    with pytest.raises(DataError, match="nothing-here"):
        run([tmp_path / "nothing-here-*.jsonl"], tmp_path / "corpus", choice)


def test_a_link_to_nothing_is_named_and_a_folder_is_no_file(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    (tmp_path / "text" / "folder.txt").mkdir(parents=True)
    write_jsonl(tmp_path / "text" / "a.jsonl", ["w10"])
    run([tmp_path / "text"], tmp_path / "corpus", choice)
    assert len(documents_in(tmp_path / "corpus")) == 1

    (tmp_path / "text" / "b.txt").symlink_to("nothing")
    with pytest.raises(DataError, match=r"b\.txt cannot be read"):
        run([tmp_path / "text"], tmp_path / "other", choice)


def test_folders_and_patterns_are_sorted_and_read_once(
    tmp_path: Path, choice: TokenizerSpec
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in (2, 1, 3):
        write_jsonl(folder / f"{number}.jsonl", [f"w{number}0"])
    (folder / "notes.pdf").write_bytes(b"")
    run([folder / "[13].jsonl", folder], tmp_path / "corpus", choice)

    # 1 and 3 by the pattern, then what is left of the folder.
    assert [document[1] for document in documents_in(tmp_path / "corpus")] == [10, 30, 20]


def test_what_a_folder_holds_is_read_or_said_to_be_left_out(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    elsewhere.mkdir()
    for name in ("a.jsonl.XZ", "b.txt.bz2", "c.JSONL.GZ", "d.csv", ".e.txt", "f.bin"):
        (folder / name).write_bytes(b"")
    (folder / ".ipynb_checkpoints" / "a.jsonl").write_bytes(b"")
    (elsewhere / "g.txt").write_bytes(b"")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)  # a circle

    found = select_inputs([str(folder), str(elsewhere / "g.txt")])

    taken = [str(file.relative_to(folder)) for file in found.files]
    assert taken == ["a.jsonl.XZ", "b.txt.bz2", "c.JSONL.GZ", "linked/g.txt"]
    assert found.describe() == [
        f"left out, hidden: {folder}/.e.txt, {folder}/.ipynb_checkpoints/a.jsonl",
        f"left out, of an unknown format: {folder}/d.csv",
        f"left out, part of a corpus: {folder}/f.bin",
        f"left out, named before: {elsewhere}/g.txt",
    ]


@pytest.mark.parametrize(
    ("ending", "compress"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress), ("", bytes)],
)
def test_every_compression_gives_the_same_corpus(
    ending: str, compress: Callable[[bytes], bytes], tmp_path: Path, choice: TokenizerSpec
) -> None:
    (tmp_path / f"a.txt{ending.upper()}").write_bytes(compress(b"w10 w11\nw12\n"))
    run([tmp_path / f"a.txt{ending.upper()}"], tmp_path / "corpus", choice)

    assert [document[1:-1] for document in documents_in(tmp_path / "corpus")] == [[10, 11], [12]]


def test_a_finished_corpus_does_not_need_its_text_any_more(
    tmp_path: Path, choice: TokenizerSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", ["w10"])
    command = ["prepare", str(file), "--output", str(tmp_path / "c"), "--tokenizer", choice.path]
    command += ["--kind", "bert"]
    assert main(command) == 0
    file.unlink()

    assert main(command) == 0
    assert f"found {tmp_path}/c: documents=1" in capsys.readouterr().err
