"""Files of examples: what is read, and what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from glm_dist.errors import ConfigError, DataError
from glm_dist.generate.prompt import Data
from glm_dist.tasks.examples import Kind, read_examples
from tests.messages import Says


def write(folder: Path, *records: object) -> Path:
    file = folder / "task.jsonl"
    file.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    return file


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"inputs": "a [MASK]", "choices": ["x", "y"], "label": 1}, Kind.choice),
        ({"text": "a [MASK]", "choices": ["x", "y"], "label": "y"}, Kind.choice),
        (
            {"inputs_pretokenized": "a [MASK]", "choices_pretokenized": ["x", "y"], "label": 1},
            Kind.choice,
        ),
        ({"inputs": "a [MASK]", "targets": ["x", "y"]}, Kind.answer),
        ({"inputs_pretokenized": "a [MASK]", "targets_pretokenized": "x"}, Kind.answer),
        ({"text": "a [MASK]"}, Kind.text),
    ],
)
def test_the_fields_tell_the_kind(tmp_path: Path, record: object, kind: Kind) -> None:
    found = read_examples(write(tmp_path, record, record))

    assert (found.name, found.kind, len(found.examples)) == (f"{tmp_path}/task", kind, 2)
    (part,) = found.examples[1].parts
    assert part == "a [MASK]"
    assert isinstance(part, Data) == (kind is Kind.text), "only a prompt may name a blank"
    assert found.examples[1].label == (1 if kind is Kind.choice else 0)
    assert found.examples[1].where == f"{tmp_path}/task.jsonl:2"


def test_a_pattern_joins_literal_text_and_fields(tmp_path: Path) -> None:
    record = {"q": "[MASK]?", "n": 3, "choices": ["x"], "label": 0}
    found = read_examples(write(tmp_path, record), pattern="{q} {n}: [MASK].")
    parts = found.examples[0].parts

    assert parts == ("[MASK]?", " 3", ": [MASK].")
    assert [isinstance(part, Data) for part in parts] == [True, True, False]


@pytest.mark.parametrize("pattern", ["", " ", "{a", "b}", "{}", "{a:x}"])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, pattern: str) -> None:
    file = write(tmp_path, {"a": "x", "targets": "y"})
    with pytest.raises(ConfigError, match="--pattern"):
        read_examples(file, pattern=pattern)


def test_a_pattern_names_any_field_and_those_inside_others(tmp_path: Path) -> None:
    file = write(tmp_path, {"a b": "x", "m": {"中": 2}, "none": None, "targets": "y"})
    assert read_examples(file, pattern="{a b}{m.中}").examples[0].parts == ("x", "2")
    for pattern in ("{none}", "{m}", "{missing}"):
        with pytest.raises(DataError, match="the pattern names"):
            read_examples(file, pattern=pattern)
    text = write(tmp_path, {"text": "a"})
    with pytest.raises(DataError, match="without a pattern"):
        read_examples(text, pattern="{text}")


def test_a_limit_draws_from_the_whole_file(tmp_path: Path) -> None:
    file = write(tmp_path, *({"text": f"text {n}"} for n in range(1000)))
    chosen = read_examples(file, limit=50).examples
    numbers = [int(example.where.rpartition(":")[2]) for example in chosen]

    assert chosen == read_examples(file, limit=50).examples
    assert numbers == sorted(set(numbers))
    assert 300 < sum(numbers) / 50 < 700


@pytest.mark.parametrize(
    "records",
    [
        [{"title": "a"}],
        [{"choices": ["x"], "label": 0}],
        [{"inputs": "a", "choices": ["x"], "label": 1}],
        [{"inputs": "a", "choices": ["x", "y"], "label": True}],
        [{"inputs": "a", "choices": ["x", ""], "label": 0}],
        [{"inputs": "a", "choices": ["x"]}],
        [{"text": "half \ud800"}],
        [{"inputs": "a", "choices": "x", "label": 0}],
        [{"inputs": "a", "targets": []}],
        [{"text": "a"}, {"inputs": "a", "targets": "b"}],
        [["a"]],
        [],
    ],
    ids=str,
)
def test_what_is_no_example_is_named(tmp_path: Path, records: list[object], says: Says) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path, *records))
    says(caught.value)
    with pytest.raises(DataError, match="is no file of examples"):
        read_examples(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("name", "encoding", "problem"),
    [
        ("a.jsonl.gz", "utf-8", "is compressed"),
        ("a.jsonl", "utf-16", "is UTF-16"),
        ("a.json", "utf-8", "is a JSON array"),
    ],
)
def test_files_that_are_no_json_lines_are_refused_by_what_they_are(
    tmp_path: Path, name: str, encoding: str, problem: str
) -> None:
    content = '[{"text": "a"}]' if name == "a.json" else '{"text": "a"}\n'
    packed = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode(encoding)
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(DataError, match=problem):
        read_examples(tmp_path / name)
