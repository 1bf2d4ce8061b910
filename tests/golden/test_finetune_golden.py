"""Inputs of every official task, from its file through reader, pattern and prompt to the row."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from glm_dist.config.load import default_config_dir, load_config
from glm_dist.config.schema import RunConfig, TaskConfig, TaskKind, TokenizerKind
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.tokenizer import Tokenizer, TokenizerSpec, open_tokenizer
from glm_dist.errors import ConfigError
from glm_dist.generate.part_b import PartB
from glm_dist.tasks.readers.open import read_records
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.rows import answers_row, context_row
from glm_dist.tasks.task_prompts import TaskExample, TaskPrompts
from tests.golden.reference import REFERENCE, reference_files
from tests.golden.test_windows_golden import tokenizer_of

pytestmark = pytest.mark.golden

ELSEWHERE = ("lm/", "lambada/")  # test_windows_golden.py
SUMMARIES = ("gigaword", "cnn_dm", "cnn_dm_original", "customization")
OURS = {"blank": "blanks"}


def cases() -> list[object]:
    """Every case of every reference file."""
    files = reference_files("finetune/[!eh]*.json")
    if not isinstance(files[0].values[0], Path):  # type: ignore[attr-defined]
        return files
    found: list[object] = []
    for file in (each.values[0] for each in files):  # type: ignore[attr-defined]
        names = json.loads(file.read_text(encoding="utf-8"))
        found += [
            pytest.param((file, name), id=f"{file.stem}-{name}")
            for name in names
            if not name.startswith(ELSEWHERE)
        ]
    return found


@lru_cache
def opened(file: Path) -> tuple[dict[str, Any], Tokenizer]:
    content = json.loads(file.read_text(encoding="utf-8"))
    return content, tokenizer_of(file, content)


@lru_cache
def examples() -> dict[str, Any]:
    text = (REFERENCE / "finetune" / "examples.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@lru_cache
def run_config() -> RunConfig:
    overrides = ["experiment=quickstart", "run.name=golden", "model.max_position_embeddings=1024"]
    return load_config(overrides)


@lru_cache
def base(task: str) -> RunConfig:
    """A run with an option of conf/task, read alone: tests/config composes each of them."""
    file = default_config_dir() / "task" / f"{OURS.get(task, task)}.yaml"
    option = OmegaConf.merge(OmegaConf.structured(TaskConfig), OmegaConf.load(file))
    root = OmegaConf.create({"task": option, "paths": {"data": "data"}})
    read = OmegaConf.to_object(root.task)
    assert isinstance(read, TaskConfig)
    return replace(run_config(), task=read)


def written(task: str, folder: Path) -> Path:
    """A file of the task with the reference's example."""
    found = examples()
    if task == "blank":
        text = folder / "x.txt"
        text.write_text(found["_seq2seq_source"])
        return text
    if task in SUMMARIES:
        for name in ("source", "target"):
            (folder / f"x.{name}").write_text(found[f"_seq2seq_{name}"] + "\n")
        return folder / "x"
    if task in ("squad_generation", "cmrc"):
        squad = found["_squad"]
        answer = {"text": squad["answer"], "answer_start": squad["answer_start"]}
        asked = {"id": "q", "question": squad["question"], "answers": [answer]}
        paragraphs = [{"context": squad["context"], "qas": [asked]}]
        (folder / "x.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
        return folder / "x.json"
    (folder / "x.jsonl").write_text(json.dumps(found[task]) + "\n")
    return folder / "x.jsonl"


def configured(name: str, file: Path) -> tuple[RunConfig, Split]:
    """The configuration of a case, with the lengths of the reference."""
    task, *rest = name.split("/")
    settings = examples()["_settings"]
    split = Split.valid if rest[0] in ("dev", "test") else Split.train
    if task == "wsc" and "mix" not in rest:
        task = "wsc_plain"
    config = base(task)
    changed = replace(
        config.task,
        max_length=settings["cloze_max_length"],
        source_length=settings["src_seq_length"],
        target_length=settings["tgt_seq_length"],
        data=replace(config.task.data, **{split.value: str(file)}),
    )
    patterns = [int(each[1:]) for each in rest if each[0] == "p" and each[1:].isdigit()]
    if patterns and changed.patterns:
        changed = replace(changed, pattern_id=patterns[0])
    if rest[0] == "classifier":
        changed = replace(changed, kind=TaskKind.classify)
    if task == "wsc_plain":  # one length for prompt and answer
        changed = replace(changed, source_length=settings["cloze_max_length"] - 2)
    if rest[-1] == "mask_pad":
        changed = replace(changed, pad_prompt=False)
    return replace(config, task=changed), split


def first_example(
    name: str, tokenizer: Tokenizer, folder: Path, **changes: Any
) -> tuple[TaskExample, TaskPrompts, RunConfig]:
    config, split = configured(name, written(name.partition("/")[0], folder))
    config = replace(config, task=replace(config.task, **changes))
    records = read_records(config.task, split, tokenizer)
    prompts = TaskPrompts(config, tokenizer)
    return prompts.example(records[0]), prompts, config


def rows_of(
    example: TaskExample, config: RunConfig, tokenizer: Tokenizer, length: int
) -> list[Row]:
    part_b = PartB.of(config, tokenizer.special)
    rows = []
    for question in example.questions:
        tokens = question.prompt.tokens
        if not question.blanks:
            special = tokenizer.special
            rows.append(context_row(tokens, special=special, row_length=length, label=0))
            continue
        blanks, answers = question.blanks, question.answers
        rows.append(answers_row(tokens, blanks, answers, part_b, row_length=length))
    return rows


def as_lists(values: Any, depth: int) -> list[Any]:
    """Rows of an entry, which has one or several."""
    array = np.array(values)
    return array.reshape(-1, *array.shape[array.ndim - depth :]).tolist()


def check_row(row: Row, text: list[int], places: list[list[int]], prefix: int) -> None:
    count = row.num_real_tokens  # behind it official rows have [eop] and padding that nothing sees
    assert row.tokens[:count].tolist() == text[:count]
    assert row.positions[:count].tolist() == places[0][:count]
    assert row.block_positions[:count].tolist() == places[1][:count]
    assert row.prefix_length == prefix


@pytest.mark.parametrize("case", cases())
def test_rows_equal_the_official_ones(case: tuple[Path, str], tmp_path: Path) -> None:
    file, name = case
    content, tokenizer = opened(file)
    expected = content[name]
    if "error" in expected:
        check_refused(name, tokenizer, tmp_path)
    elif name.startswith("blank/"):
        check_blanks(name, expected, tokenizer, tmp_path)
    elif "position_id" in expected and not name.startswith("wsc"):
        check_written(name, expected, tokenizer, tmp_path)
    else:
        check_chosen(name, expected, tokenizer, tmp_path)


def check_chosen(name: str, expected: dict[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    example, prompts, config = first_example(name, tokenizer, folder)
    texts = as_lists(expected["text"], 1)
    places = as_lists(expected.get("position", expected.get("position_id")), 2)
    prefixes = as_lists(expected.get("mask", expected.get("attention_mask")), 0)
    rows = rows_of(example, config, tokenizer, len(texts[0]))
    assert len(rows) == len(texts)
    for row, text, positions, prefix in zip(rows, texts, places, prefixes, strict=True):
        check_row(row, text, positions, prefix)
    if example.label >= 0 and not name.startswith("wsc"):
        assert example.label == expected["label"]
    if "target" not in expected:
        return
    masks = as_lists(expected.get("logit_mask", expected.get("loss_mask")), 1)
    assert [row.loss_mask.astype(int).tolist() for row in rows] == masks
    if prompts.answer_ids:
        assert list(prompts.answer_ids) == expected["target"]
        return
    for row, targets in zip(rows, as_lists(expected["target"], 1), strict=True):
        assert row.targets[row.loss_mask].tolist() == np.array(targets)[row.loss_mask].tolist()


def check_written(name: str, expected: dict[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    example, _, config = first_example(name, tokenizer, folder)
    if name == "squad_generation/test":  # its script reads no answers of the test set
        answer = json.dumps(examples()["_squad"]["answer"])
        content = (folder / "x.json").read_text()
        fake = content.replace(f'"text": {answer}', '"text": "FAKE_ANSWER"')
        (folder / "x.json").write_text(fake)
        records = read_records(config.task, Split.valid, tokenizer)
        example = TaskPrompts(config, tokenizer).example(records[0])
    text, places = expected["text"], expected["position_id"]
    (question,) = example.questions
    prompt = question.prompt.tokens
    if name.endswith("mask_pad"):  # what is hidden is left out
        seen = expected["attention_mask"][0][0]
        prefix, padded = sum(seen), config.task.source_length
        real = [*range(prefix), *range(padded, len(text))]
        text = [text[n] for n in real]
        places = [[row[n] for n in real] for row in places]
    else:
        prefix = expected["attention_mask"]
    if "target" not in expected:
        assert [*prompt, tokenizer.special.sop] == text
        assert [*range(len(prompt)), question.blanks[0]] == places[0]
        assert prefix == len(prompt)
        return
    (row,) = rows_of(example, config, tokenizer, len(text))
    check_row(row, text, places, prefix)
    chosen = np.array(expected["loss_mask"]) > 0
    assert row.targets[row.loss_mask].tolist() == np.array(expected["target"])[chosen].tolist()


def check_blanks(name: str, expected: dict[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """Give the reader the blanks that the official code drew."""
    blanked = examples()["_blank_test"]
    if "target" in expected:
        blanked = blanked_text(expected["text"], tokenizer)
    (folder / "x.blank").write_text(blanked)
    share = 0.3
    example, _, config = first_example(name, tokenizer, folder, blank_share=share)
    (question,) = example.questions
    if "target" not in expected:
        assert [*question.prompt.tokens, tokenizer.special.sop] == expected["text"]
        assert question.blanks[0] == expected["position_id"][0][-1]
        return
    (row,) = rows_of(example, config, tokenizer, len(expected["text"]))
    check_row(row, expected["text"], expected["position_id"], expected["attention_mask"])
    chosen = np.array(expected["loss_mask"]) > 0
    assert row.targets[row.loss_mask].tolist() == np.array(expected["target"])[chosen].tolist()


def blanked_text(tokens: list[int], tokenizer: Tokenizer) -> str:
    """The example's words, with a mark where the official code hid some."""
    shown: list[str] = []
    for word in examples()["_seq2seq_source"].split():
        ids = tokenizer.encode_document(word)
        if tokens[:1] == [tokenizer.special.mask]:
            shown.append("<blank>")
            tokens = tokens[1:]
        if tokens[: len(ids)] == ids:
            shown.append(word)
            tokens = tokens[len(ids) :]
    return " ".join(shown)


def check_refused(name: str, tokenizer: Tokenizer, folder: Path) -> None:
    """Answers that are no single tokens: refused where one is asked for, else compared in full."""
    if name.startswith("blank/"):
        return  # official: BERT's vocabulary only
    with pytest.raises(ConfigError, match="single_token"):
        first_example(name, tokenizer, folder, single_token=True)
    example, prompts, _ = first_example(name, tokenizer, folder)
    assert prompts.answer_ids == ()
    assert len(example.questions) == len(example.choices)


SPACED = {
    "copa/train/p0": ('"he got', '"? The man broke', " he got a hole in his sock"),
    "record/train/p0": ("Paris is", ". The capital city is", " Paris"),
    "wsc/train/p0/mix": ("Mark told", " The pronoun '*himself*' refers", " Mark"),
    "wic/train/p1": ("Do you", "? A political", " No"),
    "rte/train/p1": ("Weapons of", "Iraq?[MASK], No Weapons", " No"),
    "boolq/train/p4": ("Based on the following passage is", "?[MASK]. Persian", " Yes"),
    "multirc/train/p1": ("Animated", '? Is the correct answer "Michael"?[MASK].', " Yes"),
    "gigaword/train": ("[MASK] Content:", ": the quick", " fox jumps over dog"),
    "customization/train": ("the quick", " today .", " fox jumps over dog"),
}
"""Beginning of the prompt, a part of it, and the answer that comes first, with their spaces."""


@lru_cache
def byte_level() -> Tokenizer:
    path = REFERENCE / "tokenizers" / "gpt2-vocab.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    return open_tokenizer(TokenizerSpec(TokenizerKind.gpt2, str(path), task_masks=False))


@pytest.mark.parametrize("name", SPACED)
def test_spaces_of_byte_level_vocabularies_are_the_official_ones(name: str, tmp_path: Path) -> None:
    tokenizer = byte_level()
    example, _, _ = first_example(name, tokenizer, tmp_path)
    begin, inside, answer = SPACED[name]
    question = example.questions[0]
    prompt = tokenizer.decode(question.prompt.tokens).removeprefix("[CLS]")
    assert prompt.startswith(begin)
    assert inside in prompt
    (ids,) = question.answers
    assert tokenizer.decode(ids).removesuffix("<|endofpiece|>") == answer
