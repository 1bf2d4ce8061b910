"""Files of other encodings, formats and fields: read, or refused with what would help."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from glm_dist.data.corpus.indexed import open_indexed
from glm_dist.data.prepare.readers import TextOptions
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec
from glm_dist.errors import DataError
from tests.data.preparations import run
from tests.messages import Says


def ids_in(prefix: Path) -> list[list[int]]:
    """Ids of all documents without those that open and close them."""
    corpus = open_indexed(prefix)
    return [corpus.document(number)[1:-1].tolist() for number in range(corpus.num_documents)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "w10 w11\nw12\n".encode("utf-16")),
        ("a.txt", "w10 w11\nw12\n".encode("utf-16-be")),
        ("a.txt", "w10 w11\nw12\n".encode("utf-32")),
        ("a.jsonl", '{"text": "w10"}\n'.encode("utf-16")),
        ("a.json", b' [\n {"text": "w10"}]'),
    ],
    ids=["utf-16", "utf-16 without mark", "utf-32", "jsonl in utf-16", "array"],
)
def test_what_is_no_utf_8_or_no_json_lines_is_refused(
    tmp_path: Path, choice: TokenizerSpec, name: str, content: bytes, says: Says
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        run([tmp_path / name], tmp_path / "corpus", choice)
    says(caught.value)


def test_documents_with_nul_are_no_text(tmp_path: Path, choice: TokenizerSpec) -> None:
    (tmp_path / "a.txt").write_bytes(b"w10\n" * 20 + b"w11\0w12\nw13\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "w14\\u0000"}\n{"text": "w15"}\n')
    outcome = run([tmp_path / "a.txt", tmp_path / "b.jsonl"], tmp_path / "corpus", choice)

    assert [(Path(bad.file).name, bad.line) for bad in outcome.bad_lines.first] == [
        ("a.txt", 21),
        ("b.jsonl", 1),
    ]
    assert ids_in(tmp_path / "corpus")[-2:] == [[13], [15]]


def test_fields_inside_others_are_read(tmp_path: Path, choice: TokenizerSpec) -> None:
    records = [{"meta": {"text": f"w{10 + n}", "n": n}, "id": n} for n in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (tmp_path / "b.jsonl").write_text('{"meta.text": "w20", "meta": {"text": "w21"}}\n')
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet", row_group_size=2)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.parquet"]
    run(files, tmp_path / "corpus", choice, options=TextOptions(text_key="meta.text"))

    of_records = [[10 + n] for n in range(5)]
    assert ids_in(tmp_path / "corpus") == [*of_records, [20], *of_records]


@pytest.mark.parametrize(
    "kind",
    [pyarrow.binary(), pyarrow.large_string(), pyarrow.dictionary("int32", "string")],
    ids=str,
)
def test_parquet_columns_of_other_text_types(
    tmp_path: Path, choice: TokenizerSpec, kind: pyarrow.DataType
) -> None:
    column = pyarrow.array(["w10", "w11", "w10"]).cast(kind)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    run([tmp_path / "a.parquet"], tmp_path / "corpus", choice)

    assert ids_in(tmp_path / "corpus") == [[10], [11], [10]]


@pytest.mark.parametrize("columns", [{"text": [[1], [2]], "body": ["w1", "w2"]}, {"a": [1]}])
def test_a_parquet_column_without_text_is_refused(
    tmp_path: Path, choice: TokenizerSpec, columns: dict[str, list[object]], says: Says
) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError) as caught:
        run([tmp_path / "a.parquet"], tmp_path / "corpus", choice)
    says(caught.value)


def test_the_key_that_holds_the_text_is_proposed(
    tmp_path: Path, choice: TokenizerSpec, says: Says
) -> None:
    record = {"title": "w1", "body": {"content": "w10 w11 w12"}, "id": 3}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(record)}\n" * 3)
    with pytest.raises(DataError) as caught:
        run([tmp_path / "a.jsonl"], tmp_path / "corpus", choice)
    says(caught.value)
    assert caught.value.fix == "add --text-key body.content"
    with pytest.raises(DataError, match=r"a\.jsonl:1: no field 'text'") as caught:
        run([tmp_path / "a.jsonl"], tmp_path / "corpus", choice, max_bad_lines=1)
    assert caught.value.fix == "--text-key body.content"
