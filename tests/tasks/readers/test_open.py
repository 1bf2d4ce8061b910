"""Readers: formats of benchmarks, and files that are none."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm_dist.config.schema import TaskConfig, TaskDataConfig
from glm_dist.config.task import TaskKind
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import ConfigError, DataError
from glm_dist.tasks.readers.open import READERS, read_records
from glm_dist.tasks.readers.records import Record, Split
from tests.messages import Says

COPA = {"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "effect", "label": 1}
WSC = {
    "text": "Mark told Pete about himself, which he knew.",
    "target": {"span1_text": "Mark", "span2_text": "himself", "span2_index": 4},
    "candidates": [{"text": "Pete"}, {"text": "it"}, {"text": "Pete"}],
    "label": True,
}
MULTIRC = {
    "passage": {
        "text": "T.",
        "questions": [
            {"question": "Q?", "answers": [{"text": "a", "label": 0}, {"text": "b", "label": 1}]},
            {"question": "R?", "answers": [{"text": "c", "label": 1}]},
        ],
    }
}
RECORD = {
    "passage": {
        "text": "Ann and Bob.\n@highlight\nBob won",
        "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}],
    },
    "qas": [
        {"query": "“@placeholder” won", "answers": [{"text": "Bob"}]},
        {"query": "then @placeholder", "answers": [{"text": "Ann"}, {"text": "Bob"}]},
    ],
}


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def read(
    content: str | bytes,
    reader: str,
    folder: Path,
    words: Tokenizer,
    *,
    split: Split = Split.valid,
    name: str = "x.jsonl",
    **changes: Any,
) -> list[Record]:
    if isinstance(content, str):
        content = content.encode()
    (folder / name).write_bytes(content)
    return read_file(folder / name, reader, words, split=split, **changes)


def read_file(
    file: Path, reader: str, words: Tokenizer, *, split: Split = Split.valid, **changes: Any
) -> list[Record]:
    task = TaskConfig(kind=TaskKind.cloze, data=TaskDataConfig(reader=reader), **changes)
    task = replace(task, data=replace(task.data, **{split.value: str(file)}))
    return read_records(task, split, words)


def test_copa_trains_on_swapped_choices_as_well(tmp_path: Path, words: Tokenizer) -> None:
    found = read(lines(COPA), "copa", tmp_path, words, split=Split.train)
    assert [each.fields["choices"] for each in found] == [["A.", "B."], ["B.", "A."]]
    assert [each.fields["label"] for each in found] == [1, 0]
    assert found[0].fields["joiner"] == ", so"
    assert len(read(lines(COPA), "copa", tmp_path, words)) == 1


def test_names_of_the_diagnostics_are_those_of_rte(tmp_path: Path, words: Tokenizer) -> None:
    found = read(
        lines({"sentence1": "It’s", "sentence2": "b", "label": "entailment"}),
        "pairs",
        tmp_path,
        words,
    )
    assert dict(found[0].fields) == {"premise": "It's", "hypothesis": "b", "label": "entailment"}


def test_wsc_marks_the_pronoun_and_leaves_out_false_training_examples(
    tmp_path: Path, words: Tokenizer
) -> None:
    shifted = {**WSC, "target": {**WSC["target"], "span2_index": 5}, "label": False}  # type: ignore[dict-item]
    shifted["text"] = "Mark told Pete about himself , which he knew."
    text = lines(WSC, shifted)
    train = read(text, "wsc", tmp_path, words, split=Split.train)
    valid = read(text, "wsc", tmp_path, words)
    assert train[0].fields["text"] == "Mark told Pete about *himself* , which he knew."
    assert train[0].fields["choices"] == ["Mark", "Pete", "it"]
    assert [len(train), len(valid)] == [1, 2]
    assert [each.is_right for each in valid] == [True, False]
    assert [each.fields["span"] for each in read(text, "wsc_plain", tmp_path, words)] == [
        "Mark"
    ] * 2
    assert [each.is_right for each in read(text, "wsc_plain", tmp_path, words)] == [True, False]
    # A classifier's label says it; its right answer to the second one is "false".
    spans = read(text, "wsc_spans", tmp_path, words, split=Split.train)
    assert [(each.fields["label"], each.is_right) for each in spans] == [
        (True, True),
        (False, True),
    ]


def test_wsc_trains_on_its_candidates_in_groups_of_nine(tmp_path: Path, words: Tokenizer) -> None:
    many = {**WSC, "candidates": [{"text": f"c{n}"} for n in range(11)]}
    found = read(lines(many), "wsc", tmp_path, words, split=Split.train)
    assert [len(each.fields["choices"]) for each in found] == [10, 10]
    # The second group is filled up from the first candidates.
    assert found[1].fields["choices"] == ["Mark", "c9", "c10", *(f"c{n}" for n in range(7))]


def test_answers_of_one_question_are_one_group(tmp_path: Path, words: Tokenizer) -> None:
    found = read(lines(MULTIRC), "multirc", tmp_path, words)
    assert [each.fields["answer"] for each in found] == ["a", "b", "c"]
    assert found[0].group == found[1].group != found[2].group


def test_record_trains_on_each_answer_and_is_measured_on_all(
    tmp_path: Path, words: Tokenizer
) -> None:
    train = read(lines(RECORD), "record", tmp_path, words, split=Split.train)
    valid = read(lines(RECORD), "record", tmp_path, words)
    assert [each.fields["choices"] for each in train] == [["Bob", "Ann"], ["Ann"], ["Bob"]]
    assert [each.fields["answers"] for each in valid] == [["Bob"], ["Ann", "Bob"]]
    assert valid[0].fields["choices"] == ["Ann", "Bob"]
    assert valid[0].fields["passage"].endswith("- Bob won")
    assert (valid[0].fields["before"], valid[0].fields["after"]) == ('"', '" won')


def test_tables_are_read_with_and_without_names(tmp_path: Path, words: Tokenizer) -> None:
    named = 'Quality\t#1 String\t#2 String\n1\tSay "a\tb\n'
    (mrpc,) = read(named, "glue_sentences", tmp_path, words)
    assert dict(mrpc.fields) == {"sentence1": 'Say "a', "sentence2": "b", "label": "1"}
    (cola,) = read("gj04\t1\t\tOur friends\n", "cola", tmp_path, words)
    assert dict(cola.fields) == {"sentence": "Our friends", "label": "1"}
    (test,) = read("index\tsentence\n0\tx\n", "cola", tmp_path, words, split=Split.test)
    assert dict(test.fields) == {"sentence": "x", "label": None}
    assert test.where.endswith("x.jsonl:2")
    (news,) = read('"3","Oil, again","It\\rose"\n', "agnews", tmp_path, words)
    assert dict(news.fields) == {"title": "Oil, again", "text": "It rose", "label": "3"}
    (asked,) = read('"1","Why?","More","So\\nthere"\n', "yahoo", tmp_path, words)
    assert (asked.fields["question"], asked.fields["answer"]) == ("Why? More", "So there")


def test_rows_that_break_off_are_left_out_with_a_warning(
    tmp_path: Path, words: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    table = "sentence\tlabel\nx\ny\t1\nz\n"
    (kept,) = read(table, "glue_sentence", tmp_path, words)
    assert kept.fields["sentence"] == "y"
    (message,) = caplog.messages
    assert message == f"left out 2 rows that lack columns, the first one {tmp_path}/x.jsonl:2"


def test_clue_marks_the_noun_and_the_pronoun(tmp_path: Path, words: Tokenizer) -> None:
    target = {"span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 4}
    (found,) = read(
        lines({"text": "小明说，他来", "target": target, "label": "true"}),
        "cluewsc",
        tmp_path,
        words,
    )
    assert found.fields["text"] == "#小明#说，*他*来"


def squad(context: str, *answers: str, question: str = "w6") -> str:
    asked = {"id": "q", "question": question, "answers": [{"text": each} for each in answers]}
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [asked]}]}]})


def test_a_long_passage_is_read_in_windows(tmp_path: Path, words: Tokenizer) -> None:
    context = " ".join(f"w{n}" for n in range(10, 22))
    found = read(squad(context, "w12"), "squad", tmp_path, words, source_length=12)
    # 12 - 3 - 1 = 8 tokens at a time, a new window every 12 / 2 = 6.
    assert [each.fields["context"].split()[0] for each in found] == ["w10", "w16"]
    assert [each.fields["answer"] for each in found] == ["w12", "N/A"]
    assert found[0].group == found[1].group
    (kept,) = read(squad(context, "w12"), "squad_v1", tmp_path, words, source_length=12)
    assert kept.fields["answer"] == "w12"
    (unanswered,) = read(squad("w10"), "squad", tmp_path, words, source_length=12)
    assert unanswered.fields["answers"] == ["N/A"]


def test_a_question_is_written_about_the_place_of_its_answer(
    tmp_path: Path, words: Tokenizer
) -> None:
    context = " ".join(f"w{n}" for n in range(10, 60))
    (found,) = read(squad(context, "w40"), "squad_generation", tmp_path, words, source_length=24)
    shown = found.fields["context"].split()
    assert ("w40" in shown, "w10" in shown) == (True, False)
    short = read(squad("w10 w11", "w10", "w11"), "cmrc", tmp_path, words, split=Split.train)
    assert [each.fields["answer"] for each in short] == ["w10", "w11"]


@pytest.mark.parametrize(
    ("reader", "source", "expected"),
    [
        ("parallel", "It’s -lrb-", "It’s -lrb-"),
        ("summaries", "It’s -lrb-", "It's -lrb-"),
        ("gigaword", "it -lrb- &amp;", "it ( &"),
        ("cnn_dm", "-LRB- do n't `` say '' <S_SEP>", '( don\'t " say " '),
    ],
)
def test_lines_of_two_files_belong_together(
    reader: str, source: str, expected: str, tmp_path: Path, words: Tokenizer
) -> None:
    (tmp_path / "x.target").write_text("t\n")
    (tmp_path / "x.source").write_text(source + "\n")
    for name in ("x", "x.source"):
        (found,) = read_file(tmp_path / name, reader, words)
        assert (found.fields["source"], found.fields["target"]) == (expected, "t")


def test_xsum_is_read_from_its_folder(tmp_path: Path, words: Tokenizer) -> None:
    name = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
    (tmp_path / name).write_text(json.dumps({"train": [], "validation": ["1"], "test": []}))
    summary = "[SN]URL[SN]\nu\n\n[SN]FIRST-SENTENCE[SN]\nIn short.\n[SN]RESTBODY[SN]\nA.\nB.\n"
    (tmp_path / "1.summary").write_text(summary)
    (found,) = read_file(tmp_path, "xsum", words)
    assert dict(found.fields) == {"source": "A. B.", "target": "In short."}


def test_blanks_may_have_a_file(tmp_path: Path, words: Tokenizer) -> None:
    (tmp_path / "x.blank").write_text("a <blank>\n")
    (found,) = read("a b\n", "blanks", tmp_path, words, name="x.txt")
    assert dict(found.fields) == {"text": "a b", "blanked": "a <blank>"}


def test_a_limit_takes_training_examples_from_the_whole_file(
    tmp_path: Path, words: Tokenizer
) -> None:
    text = lines(*({"n": n} for n in range(100)))
    train = read(text, "jsonl", tmp_path, words, split=Split.train, limit=10)
    numbers = [each.fields["n"] for each in train]
    assert numbers == sorted(numbers)
    assert (len(numbers), max(numbers) > 50) == (10, True)
    assert len(read(text, "jsonl", tmp_path, words, limit=10)) == 100


BAD: dict[str, tuple[str, str | bytes]] = {
    "empty file": ("jsonl", ""),
    "no JSON": ("jsonl", '{"a": 1}\n{"a": \n'),
    "no object": ("jsonl", "3\n"),
    "JSON array": ("jsonl", "[{}]"),
    "compressed": ("jsonl", gzip.compress(b"{}", mtime=0)),
    "UTF-16": ("jsonl", "{}\n".encode("utf-16")),
    "Latin-1": ("glue_sentence", "sentence\tlabel\nél\t1\n".encode("latin-1")),
    "question of COPA": ("copa", lines({**COPA, "question": "why"})),
    "missing field": ("copa", lines({"premise": "P."})),
    "no pronoun": ("wsc", lines({**WSC, "text": "Mark told"})),
    "no candidates": ("wsc", lines({**WSC, "candidates": []})),
    "no placeholder": ("record", lines({**RECORD, "qas": [{"query": "who"}]})),
    "cells": ("glue_sentence", "sentence\tlabel\nx\t1\t2\n"),
    "column": ("glue_sentence", "text\tlabel\nx\t1\n"),
    "cells of CSV": ("yelp", '"1"\n'),
    "open cell": ("yelp", '"1","x\n'),
    "no question": (
        "squad",
        '[{"paragraphs": [{"context": "c", "qas": [{}]}]}]',
    ),
    "no SQuAD": ("squad", '{"a": 1}'),
    "no room": ("squad", squad("w10", "w10", question="w6 " * 9)),
    "no blank": ("blanks", "a b\n"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_none_is_named(
    name: str, tmp_path: Path, words: Tokenizer, says: Says
) -> None:
    reader, content = BAD[name]
    (tmp_path / "x.blank").write_text("no mark\n")
    file_name = "x.txt" if reader == "blanks" else "x.jsonl"
    with pytest.raises(DataError) as caught:
        read(content, reader, tmp_path, words, name=file_name, source_length=8)
    says(caught.value)


def test_missing_files_and_readers_are_named(tmp_path: Path, words: Tokenizer, says: Says) -> None:
    data = TaskDataConfig(reader="copa", train=str(tmp_path / "no.jsonl"), source="https://x.org")
    task = TaskConfig(kind=TaskKind.cloze, data=data)
    with pytest.raises(DataError) as missing:
        read_records(task, Split.train, words)
    says(missing.value)
    with pytest.raises(ConfigError, match="Choose from jsonl, parallel"):
        read_records(replace(task, data=replace(data, reader="mine")), Split.train, words)
    (tmp_path / "x.source").write_text("a\nb\n")
    (tmp_path / "x.target").write_text("a\n")
    with pytest.raises(DataError, match=r"x\.target has fewer lines than .*x\.source"):
        read_file(tmp_path / "x", "parallel", words)


def test_every_option_names_a_reader() -> None:
    folder = Path(__file__).parents[3] / "conf" / "task"
    named = {
        line.split(":")[1].strip()
        for file in folder.glob("*.yaml")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("  reader:")
    }
    assert named | {"jsonl"} == set(READERS)
