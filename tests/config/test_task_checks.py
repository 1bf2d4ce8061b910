"""Tasks: the language of patterns, the examples of the design, and contradictions."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm_dist.config.load import default_config_dir, load_config
from glm_dist.config.patterns import Field, Group, Mark, parse_pattern
from glm_dist.config.schema import (
    ChoiceLoss,
    DecodeConfig,
    RunConfig,
    TaskConfig,
    TaskDataConfig,
    TaskKind,
)
from glm_dist.config.task_checks import check_task
from glm_dist.errors import ConfigError
from tests.messages import Says

EXAMPLES = {
    "my_rte": """
kind: cloze
data:
  reader: jsonl
  train: ${paths.data}/superglue/RTE/train.jsonl
  valid: ${paths.data}/superglue/RTE/val.jsonl
  label: label
pattern: '"{hypothesis:no_stop}"? [MASK], "{premise}"'
shorten: [premise, hypothesis]
answers: {entailment: " Yes", not_entailment: " No"}
loss: cross_entropy
max_length: 256
metrics: [accuracy]
""",
    "my_choices": """
kind: cloze
data: {reader: jsonl, train: my/train.jsonl, valid: my/valid.jsonl, label: label}
pattern: '{question} [MASK].'
answers: {from: choices}
loss: mix
length_penalty: 1.0
metrics: [accuracy, macro_f1]
select: macro_f1
""",
    "my_summaries": """
kind: seq2seq
data: {reader: jsonl, train: my/train.jsonl, valid: my/valid.jsonl}
pattern: '[sMASK] Content: {text}'
target: '{targets}'
source_length: 192
target_length: 32
label_smoothing: 0.1
decode: {beams: 5, length_penalty: 0.6, no_repeat_ngram: 3, min_tokens: 0}
metrics: [rouge]
select: rouge_l
""",
}

CLOZE = TaskConfig(kind=TaskKind.cloze, pattern="{text} [MASK].", answers={"a": "good", "b": "bad"})
SEQ2SEQ = TaskConfig(kind=TaskKind.seq2seq, pattern="[sMASK] {text}", target="{summary}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The options of a user, with three tasks."""
    folder = tmp_path_factory.mktemp("conf") / "conf"
    shutil.copytree(default_config_dir(), folder)
    for name, text in EXAMPLES.items():
        (folder / "task" / f"{name}.yaml").write_text(text)
    return folder


def load(folder: Path, task: str) -> TaskConfig:
    overrides = ["experiment=quickstart", "run.name=x", f"task={task}", "paths.data=/data"]
    overrides.append("model.max_position_embeddings=512")
    return load_config(overrides, config_dir=folder).task


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config(["experiment=quickstart", "run.name=x"])


def test_fixed_answers_are_read(folder: Path) -> None:
    task = load(folder, "my_rte")
    assert (task.kind, task.data.train) == (TaskKind.cloze, "/data/superglue/RTE/train.jsonl")
    assert list(task.prompt_answers.items()) == [("entailment", " Yes"), ("not_entailment", " No")]
    assert (task.choices_field, task.row_length, task.used_metrics) == ("", 256, ["accuracy"])


def test_answers_of_the_examples_are_read(folder: Path) -> None:
    task = load(folder, "my_choices")
    assert (task.choices_field, task.prompt_answers) == ("choices", {})
    assert (task.loss, task.length_penalty, task.select) == (ChoiceLoss.mix, 1.0, "macro_f1")


def test_source_and_target_are_read(folder: Path) -> None:
    task = load(folder, "my_summaries")
    assert task.decode == DecodeConfig(5, 0.6, 3, 0)
    assert (task.row_length, task.select) == (192 + 32, "rouge_l")


def test_a_pattern_has_text_fields_groups_and_marks() -> None:
    pattern = "{*}{{ The '*{who}*'}}{|}is {a.b:no_stop:fixed}[MASK]."
    assert parse_pattern(pattern) == [
        Mark.slot,
        Group((" The '*", Field("who"), "*'")),
        Mark.border,
        "is",
        Field("a.b", ("no_stop", "fixed"), before=" "),
        "[MASK].",
    ]


def test_a_pattern_is_chosen_with_its_answers() -> None:
    patterns = ["{text} [MASK]", "{text}: [MASK]"]
    other = {"1": {"a": "yes", "b": "no"}}
    first = replace(CLOZE, pattern="", patterns=patterns, pattern_answers=other)
    second = replace(first, pattern_id=1)
    assert (first.prompt_pattern, first.prompt_answers) == (patterns[0], CLOZE.answers)
    assert (second.prompt_pattern, second.prompt_answers) == (patterns[1], other["1"])
    assert replace(second, pattern="{text}[MASK]").prompt_answers == CLOZE.answers


WRONG: dict[str, tuple[TaskConfig, dict[str, Any]]] = {
    "no pattern": (CLOZE, {"pattern": ""}),
    "no blank": (CLOZE, {"pattern": "{text}"}),
    "two blanks": (CLOZE, {"pattern": "[MASK] {text} [MASK]"}),
    "unknown filter": (CLOZE, {"pattern": "{text:loud} [MASK]"}),
    "open brace": (CLOZE, {"pattern": "{text [MASK]"}),
    "no name": (CLOZE, {"pattern": "{} [MASK]"}),
    "blank in a group": (CLOZE, {"pattern": "{{ {text} [MASK] }}"}),
    "pattern_id": (CLOZE, {"pattern": "", "patterns": ["{text} [MASK]"], "pattern_id": 1}),
    "malformed elsewhere": (CLOZE, {"patterns": ["{text} [MASK]", "}"]}),
    "no answers": (CLOZE, {"answers": {}}),
    "one answer": (CLOZE, {"answers": {"a": "good"}}),
    "empty answer": (CLOZE, {"answers": {"a": "good", "b": " "}}),
    "from and labels": (CLOZE, {"answers": {"from": "choices", "b": "bad"}}),
    "filter of choices": (CLOZE, {"answers": {"from": "choices:loud"}}),
    "one token of choices": (CLOZE, {"answers": {"from": "choices"}, "single_token": True}),
    "answers of no pattern": (CLOZE, {"pattern_answers": {"3": {"a": "x", "b": "y"}}}),
    "answers of other labels": (
        CLOZE,
        {"patterns": ["{text} [MASK]"], "pattern_answers": {"0": {"b": "x", "a": "y"}}},
    ),
    "unknown metric": (CLOZE, {"metrics": ["speed"]}),
    "metric of another kind": (CLOZE, {"metrics": ["rouge"]}),
    "select": (CLOZE, {"metrics": ["accuracy"], "select": "macro_f1"}),
    "limit": (CLOZE, {"limit": 0}),
    "epochs": (CLOZE, {"epochs": 0.0}),
    "max_length": (CLOZE, {"max_length": 1 << 20}),
    "no target": (SEQ2SEQ, {"target": ""}),
    "source_length": (SEQ2SEQ, {"source_length": 1 << 20}),
    "blank in infilling": (CLOZE, {"kind": TaskKind.infill}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_contradiction_is_named(name: str, config: RunConfig, says: Says) -> None:
    task, changes = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        check_task(replace(config, task=replace(task, **changes)))
    says(caught.value)


@pytest.mark.parametrize(
    ("task", "outputs"), [(CLOZE, 2), (replace(CLOZE, kind=TaskKind.classify), 3)]
)
def test_a_head_that_the_task_has_no_use_for_is_refused(
    task: TaskConfig, outputs: int, config: RunConfig, says: Says
) -> None:
    model = replace(config.model, num_classes=outputs)
    with pytest.raises(ConfigError) as caught:
        check_task(replace(config, task=replace(task, max_length=64), model=model))
    says(caught.value)


def test_tasks_that_fit_pass(config: RunConfig) -> None:
    for task in (CLOZE, SEQ2SEQ, TaskConfig()):
        short = replace(task, max_length=64, source_length=64, target_length=32)
        check_task(replace(config, task=short))


def test_files_are_absolute(folder: Path) -> None:
    data = load(folder, "my_choices").data
    assert data == TaskDataConfig(
        reader="jsonl",
        train=str(Path("my/train.jsonl").absolute()),
        valid=str(Path("my/valid.jsonl").absolute()),
    )
