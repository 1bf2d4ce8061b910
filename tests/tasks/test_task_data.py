"""Examples of a task in training: order, rows, skipped items; and the same prompts everywhere."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig
from glm_dist.config.task import TaskDataConfig, TaskKind
from glm_dist.data.tokenizer.tokenizer import load_tokenizer
from glm_dist.generate.load import TrainedModel
from glm_dist.generate.prompt import Prompt
from glm_dist.generate.sampling import GenerationOptions
from glm_dist.tasks.items import TaskItems
from glm_dist.tasks.measure import HeldOut, write_answers
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.task_data import TaskData, read_task_data
from tests.train.jobs import make_files

COUNT = 7


def config_of(folder: Path, *more: str) -> RunConfig:
    lines = [
        json.dumps({"text": f"w{20 + n} " * (n + 1), "choices": ["w7", "w8 w9"], "label": n % 2})
        for n in range(COUNT)
    ]
    (folder / "x.jsonl").write_text("\n".join(lines))
    task = [
        "task.kind=cloze",
        "task.pattern='{text} [MASK].'",
        "task.answers={from: choices}",
        "task.max_length=64",
        f"task.data.train={folder}/x.jsonl",
        f"task.data.valid={folder}/x.jsonl",
    ]
    return load_config([*make_files(folder), "run.name=x", "data=none", *task, *more])


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    config = config_of(tmp_path)
    return read_task_data(config, load_tokenizer(config.tokenizer))


def items(data: TaskData, *, seed: int = 1) -> TaskItems:
    return TaskItems(data, row_length=32, seed=seed, skipped=data.config.data)


def words(made: TaskItems, numbers: range) -> list[int]:
    """First word of each item: its place in the file."""
    return [int(made.rows(number)[0].tokens[1]) for number in numbers]


def test_every_epoch_has_every_example_in_another_order(data: TaskData) -> None:
    made = items(data)
    epochs = [words(made, range(n * COUNT, (n + 1) * COUNT)) for n in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(len(set(epoch)) == COUNT for epoch in epochs)
    assert words(items(data, seed=2), range(COUNT)) != epochs[0]
    assert made.epochs_before(2 * COUNT) == {"examples": 2.0}


def test_examples_that_are_trained_and_measured_are_counted(tmp_path: Path) -> None:
    lines = [
        {"text": "w20 ", "choices": ["w7", "w8 w9"], "label": 1, "id": 5},  # another label and id
        {"text": "w20 ", "choices": ["w7", "w8"], "label": 0},  # other answers
        {"text": "w99", "choices": ["w7", "w8 w9"], "label": 0},
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = config_of(tmp_path, f"task.data.test={tmp_path}/test.jsonl")
    valid, test = read_task_data(config, load_tokenizer(config.tokenizer)).repeated()
    assert valid.startswith("7 of 7 examples of task.data.valid ")
    assert test.startswith("1 of 3 examples of task.data.test ")


def test_an_item_depends_on_its_number_alone(data: TaskData) -> None:
    expected = words(items(data), range(20))
    assert words(items(data), range(13, 20)) == expected[13:]
    passing = items(data).passing_over(["3-5"])
    assert words(passing, range(10)) == expected[:3] + expected[6:13]
    assert [passing.rows(n)[0].index for n in (2, 3)] == [2, 6]


def test_rows_of_an_example_share_label_and_length(data: TaskData) -> None:
    rows = items(data).rows(0)
    assert len(rows) == data.rows_per_example == 2
    assert {row.label for row in rows} <= {0, 1}
    assert len({row.label for row in rows}) == 1
    # "w7" and its end are 2 targets, "w8 w9" and its end 3
    assert [int(row.loss_mask.sum()) for row in rows] == [2, 3]


def test_rows_are_as_long_as_the_longest_example(data: TaskData) -> None:
    # [CLS], 7 words, [MASK], a full stop and the end, and 3 targets: 14, rounded up to 16
    assert data.longest_row() == 16
    longer = data.example(data.records[Split.train][-1])
    assert max(row.num_real_tokens for row in data.rows(longer)) == 14


def test_fingerprint_is_that_of_content_and_pattern(data: TaskData, tmp_path: Path) -> None:
    before = data.fingerprint()
    (tmp_path / "moved").mkdir()
    moved = config_of(tmp_path / "moved", "tokenizer.path=" + data.config.tokenizer.path)
    assert read_task_data(moved, data.tokenizer).fingerprint() == before
    file = tmp_path / "x.jsonl"
    file.write_text(file.read_text().replace("w20", "w99"))
    assert read_task_data(data.config, data.tokenizer).fingerprint() != before
    other = replace(data.config, task=replace(data.config.task, pattern="{text} w6 [MASK]"))
    assert replace(data, config=other).fingerprint() != before


class RightWriter:
    """A model that knows what every blank hides."""

    def __init__(self, held_out: HeldOut) -> None:
        examples = [held_out.example(n) for n in range(len(held_out))]
        self._hidden = {str(each.questions[0].prompt): each.choices for each in examples}

    def write(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[list[str]]:
        return [list(self._hidden[str(prompt)]) for prompt in prompts]

    def over_replicas(self, items: Any, work: Callable[[Any], Iterable[Any]]) -> list[Any]:
        return list(work(items))


def test_right_words_in_all_blanks_give_the_text_back(tmp_path: Path) -> None:
    texts = ["w20 w21", " ".join(f"w{n}" for n in range(20, 40)), "w20", "北京是中国的首都"]
    (tmp_path / "y.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = config_of(tmp_path)
    task = replace(
        config.task,
        kind=TaskKind.infill,
        pattern="{text}",
        answers={},
        source_length=40,
        data=TaskDataConfig(valid=str(tmp_path / "y.jsonl")),
    )
    config = replace(config, task=task)
    data = read_task_data(config, load_tokenizer(config.tokenizer), splits=[Split.valid])
    held_out = HeldOut(data, Split.valid)
    counts = [len(held_out.example(n).choices) for n in range(len(texts))]
    assert counts[0] == 1 < counts[1]
    assert write_answers(cast(TrainedModel, RightWriter(held_out)), held_out) == texts
