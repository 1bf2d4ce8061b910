"""Inputs that users have sooner or later, through the command."""

import json
import math
from pathlib import Path

import pytest

from glm_dist.cli.train import configure
from glm_dist.config.load import load_config
from glm_dist.errors import GlmDistError
from glm_dist.tasks import finetune
from glm_dist.tasks.finetune import complete
from glm_dist.tasks.readers.records import Split
from tests.messages import Says
from tests.tasks.letters import write_letters
from tests.train.jobs import glm_dist_command, make_files, with_python

TEXTS = [
    "a review that says [MASK] and [gMASK]",
    "braces {x}, {{y}}, {|} and {*}",
    "",
    "word " * 10_000,
    "这部电影很好，我喜欢。",
    "\u200b\x00\t\n",
]

TASK = """
kind: cloze
data: {train: FOLDER/x.jsonl, valid: FOLDER/x.jsonl}
pattern: "{text} It was [MASK]."
answers: {yes: good, no: bad}
max_length: 40
epochs: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a vocabulary of letters, and a task."""
    folder = tmp_path_factory.mktemp("hard")
    letters = f"tokenizer.path={write_letters(folder)}"
    options = ["run.name=a", "parallel=single", "run.steps=1"]
    done = with_python([*make_files(folder), letters, *options])
    assert done.returncode == 0, done.stderr
    task = TASK.replace("FOLDER", str(folder)).replace("yes:", '"yes":').replace("no:", '"no":')
    (folder / "task.yaml").write_text(task)
    return folder


def write_examples(folder: Path, records: list[dict[str, object]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    (folder / "x.jsonl").write_text("\n".join(lines), encoding="utf-8")


def typed(folder: Path, name: str, *more: str) -> list[str]:
    where = [f"run.init_from={folder}/runs/a", f"paths.runs={folder}/runs", f"run.name={name}"]
    sizes = ["batch.global_batch_size=2", "batch.micro_batch_size=2", "data.num_workers=0"]
    return [f"task={folder}/task.yaml", *where, *sizes, "parallel=single", *more]


def test_hard_texts_are_trained_and_measured(folder: Path) -> None:
    write_examples(folder, [{"text": text, "label": "yes"} for text in TEXTS])
    done = glm_dist_command("finetune", *typed(folder, "texts"))
    assert done.returncode == 0, done.stderr
    lines = (folder / "runs" / "texts" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(TEXTS)


def test_every_prompt_of_a_hard_text_has_one_blank_and_fits(folder: Path) -> None:
    write_examples(folder, [{"text": text, "label": "no"} for text in TEXTS])
    overrides = typed(folder, "prompts")
    data = complete(load_config(overrides), overrides).data
    assert data is not None
    for record in data.records[Split.valid]:
        for row in data.rows(data.example(record)):
            masks = row.tokens[: row.prefix_length] == data.tokenizer.special.mask
            assert masks.sum() == 1
            assert row.num_real_tokens <= 40
    assert data.config.batch.row_length == 40


@pytest.mark.parametrize("listed", [3, None, "xy", {"text": ["x"]}, [{"text": "x"}]], ids=str)
def test_fields_that_readers_use_may_mean_something_else(folder: Path, listed: object) -> None:
    own = {"answers": listed, "is_right": False, "choice": "a", "label": "no"}
    write_examples(folder, [{"text": "a", **own}])
    overrides = typed(folder, "own")
    data = complete(load_config(overrides), overrides).data
    assert data is not None
    example = data.example(data.first)
    assert example.references == ("bad",)  # the answer of the label
    assert example.is_right


def test_another_encoding_is_named(folder: Path, says: Says) -> None:
    (folder / "x.jsonl").write_bytes('{"text": "café", "label": "yes"}'.encode("latin-1"))
    with pytest.raises(GlmDistError) as caught:
        configure(typed(folder, "latin"), None)
    says(caught.value)


def test_known_examples_are_read_again_only_for_other_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_examples(folder, [{"text": "a", "label": "yes"}])
    overrides = typed(folder, "known")
    data = complete(load_config(overrides), overrides).data
    assert data is not None

    def read_again(*arguments: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(finetune, "read_task_data", read_again)
    same_rows = [*overrides, "run.seed=5", "optimizer.learning_rate=1e-3", "task.epochs=3"]
    found = complete(load_config(same_rows), same_rows, known=data)
    assert found.data is not None
    assert found.data.records is data.records
    assert found.config.run.steps == 2  # an example in batches of 2, three times, is 1.5 steps
    other_rows = [*overrides, "task.max_length=30"]
    with pytest.raises(AssertionError, match="read again"):
        complete(load_config(other_rows), other_rows, known=data)


@pytest.mark.parametrize(
    ("records", "more"),
    [
        pytest.param([{"text": "a", "label": "maybe"}], [], id="label"),
        pytest.param([{"text": "a", "label": None}], [], id="no label"),
        pytest.param([{"txt": "a", "label": "yes"}], [], id="field"),
        pytest.param([{"text": ["a"], "label": "yes"}], [], id="list"),
        pytest.param([{"text": math.nan, "label": "yes"}], [], id="no number"),
        pytest.param([{"text": "a", "label": "yes"}], ["task.single_token=true"], id="tokens"),
        pytest.param(
            [{"text": "a", "label": "yes"}], ["task.metrics=[question_em]"], id="questions"
        ),
        pytest.param([], [], id="nothing"),
    ],
)
def test_examples_that_cannot_be_used_are_named(
    folder: Path, records: list[dict[str, object]], more: list[str], says: Says
) -> None:
    good: list[dict[str, object]] = [{"text": "b", "label": "yes"}] if records else []
    write_examples(folder, good + records)
    with pytest.raises(GlmDistError) as caught:
        configure(typed(folder, "refused", *more), None)
    says(caught.value)
