"""One prompt in training, evaluation and generation, for every task of conf/task."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf

from glm_dist.config.load import config_groups, default_config_dir, load_config
from glm_dist.config.patterns import fields_of, parse_pattern
from glm_dist.config.schema import RunConfig, TaskConfig, TaskKind
from glm_dist.data.tokenizer.tokenizer import load_tokenizer
from glm_dist.generate.load import TrainedModel
from glm_dist.generate.prompt import Prompt
from glm_dist.model.batch import StageBatch
from glm_dist.model.stage import build_shard
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.tasks.answers import answer
from glm_dist.tasks.items import TaskItems
from glm_dist.tasks.measure import measure_run
from glm_dist.tasks.readers.records import Record, Split
from glm_dist.tasks.task_data import TaskData
from glm_dist.tasks.task_prompts import TaskPrompts
from glm_dist.tasks.trained_run import sized
from tests.ranks import run_ranks
from tests.tasks.letters import write_letters
from tests.train.jobs import make_files

CONF = default_config_dir()
TASKS = [name for name in config_groups(CONF)["task"] if name != "none"]

TEXTS = ("Beer, [MASK] and {x}: no. 是", "one two three", "tea")
"""In turns, for the fields of a pattern."""


def base(folder: Path) -> RunConfig:
    """A run without a task."""
    more = [f"tokenizer.path={write_letters(folder, words=('yes', 'no'))}", "run.name=x"]
    return load_config([*make_files(folder), *more, "model.max_position_embeddings=1024"])


def config_of(name: str, config: RunConfig) -> RunConfig:
    """The run with a task; composing each anew would take a third of a second."""
    text = (CONF / "task" / f"{name}.yaml").read_text(encoding="utf-8")
    section = OmegaConf.create(text.replace("${paths.data}", "data"))
    read = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskConfig), section))
    # Some examples are longer than this, so shortening is compared as well.
    task = replace(
        cast(TaskConfig, read),
        max_length=110,
        source_length=110,
        target_length=4,
        metrics=["em"],
        select=None,
    )
    if task.kind in (TaskKind.cloze, TaskKind.classify):
        task = replace(task, metrics=["accuracy"])
    decode = replace(task.decode, beams=1, no_repeat_ngram=0, min_tokens=0)
    return replace(config, task=replace(task, decode=decode))


def record_of(task: TaskConfig) -> Record:
    """An example with every field that the task names."""
    pieces = [*parse_pattern(task.prompt_pattern), *parse_pattern(task.target)]
    names = dict.fromkeys(each.name for each in fields_of(pieces) if each.name != "choice")
    fields: dict[str, Any] = {n: TEXTS[i % len(TEXTS)] for i, n in enumerate(names)}
    if task.choices_field:
        return Record("x:1", {**fields, "choices": ["one tree", "tea"], task.data.label: 1})
    return Record("x:1", {**fields, task.data.label: next(iter(task.prompt_answers), "")})


@dataclass(frozen=True)
class Watched(TrainedModel):
    """A model that notes the contexts that it reads."""

    read_contexts: list[list[int]] = field(default_factory=list)

    def predict(self, batches: Sequence[StageBatch]) -> list[torch.Tensor]:
        for batch in batches:
            for tokens, length in zip(batch.tokens, batch.prefix_length, strict=True):
                self.read_contexts.append(tokens[: int(length)].tolist())
        return super().predict(batches)

    def write(self, prompts: Sequence[Prompt], *options: Any) -> list[list[str]]:
        self.read_contexts.extend(list(prompt.tokens) for prompt in prompts)
        return super().write(prompts, *options)


def contexts(name: str, run: RunConfig) -> Iterator[list[list[int]]]:
    """Contexts of one example in training, in an evaluation and in generation."""
    config = config_of(name, run)
    if config.task.kind is TaskKind.classify:
        classes = 1 if config.task.choices_field else len(config.task.prompt_answers)
        config = replace(config, model=replace(config.model, num_classes=classes))
    tokenizer = load_tokenizer(config.tokenizer)
    record, prompts = record_of(config.task), TaskPrompts(config, tokenizer)
    records = {Split.train: [record], Split.valid: [record]}
    data = sized(TaskData(config, tokenizer, prompts, records, prompts.num_questions([record])))
    config = data.config
    items = TaskItems(data, config.batch.row_length, seed=1, skipped=config.data)
    yield [row.tokens[: row.prefix_length].tolist() for row in items.rows(0)]
    groups = build_groups(Layout(), timedelta(minutes=1))
    shard = build_shard(config, groups=groups, device=torch.device("cpu")).eval()
    for shard_of in shard.shards():
        torch.nn.init.normal_(shard_of.parameter.data, std=0.02)
    for is_new in (False, True):
        model = Watched(shard, tokenizer, config, 0, groups)
        if is_new:
            answer(model, data, [record])
        else:
            measure_run(model, data, Split.valid)
        count = len(data.example(record).questions)
        yield model.read_contexts[:count]


def all_contexts(names: Sequence[str], folder: Path) -> list[list[list[list[int]]]]:
    enable_cpu()
    run = base(folder)
    return [list(contexts(name, run)) for name in names]


def test_prompts_are_the_same_everywhere(tmp_path: Path) -> None:
    (found,) = run_ranks(all_contexts, TASKS, tmp_path, world_size=1)
    for name, (trained, evaluated, generated) in zip(TASKS, found, strict=True):
        assert trained, name
        assert evaluated == trained, name
        assert generated == trained, name
    texts = {json.dumps(trained) for trained, _, _ in found}
    assert len(texts) > len(TASKS) / 2


@pytest.mark.parametrize("name", ["rte", "gigaword"])
def test_text_of_a_field_makes_no_blank(name: str, tmp_path: Path) -> None:
    config = config_of(name, base(tmp_path))
    tokenizer = load_tokenizer(config.tokenizer)
    record = record_of(config.task)
    assert any("[MASK]" in str(value) for value in record.fields.values())
    prompt = TaskPrompts(config, tokenizer).example(record).questions[0].prompt
    assert len(prompt.mask_indices) == 1
