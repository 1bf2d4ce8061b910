"""Finetuning with updates of low rank and a learned prompt, by the commands of a user."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from glm_dist.checkpoint.load import choose_checkpoint
from glm_dist.config.load import load_config_file
from glm_dist.convert.run_source import weights_of
from tests.convert.conversions import convert
from tests.tasks.test_finetune import (
    CHOICES,
    SIZES,
    predictions_of,
    record,
    results_of,
    typed,
    write_task,
)
from tests.train.jobs import glm_dist_command, make_files, with_python, with_ranks

ADAPTED = [
    "model.lora_rank=4",
    "model.prompt_tokens=3",
    "optimizer.learning_rate=0.01",
    "optimizer.trainable=['*lora*','*.prompt.*']",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained run, and one that adapted it to a task whose pattern has two slots."""
    folder = tmp_path_factory.mktemp("adapted")
    rng = random.Random(0)
    for split, count in SIZES.items():
        lines = [json.dumps(record(rng)) + "\n" for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    write_task(folder, "choices", CHOICES.replace('"{text} w6', '"{*}{text} {*} w6'))
    done = with_python([*make_files(folder), "run.name=a", "parallel=single", "run.steps=1"])
    assert done.returncode == 0, done.stderr
    command = typed(folder, "choices", "single", "parallel=single", *ADAPTED)
    done = glm_dist_command("finetune", *command)
    assert done.returncode == 0, done.stderr
    return folder


def evaluated(folder: Path, run: str) -> Any:
    """Results of an evaluation of a run on its own task."""
    out = folder / f"{run}.json"
    done = glm_dist_command("evaluate", str(folder / "runs" / run), "--json", str(out))
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_every_layout_gives_the_scores_of_one_process(folder: Path, layout: str) -> None:
    command = typed(folder, "choices", layout, f"parallel={layout}", *ADAPTED)
    for done in with_ranks(command, 2):
        assert done.returncode == 0, done.stderr
    alone, found = predictions_of(folder, "single"), predictions_of(folder, layout)
    for one, other in zip(alone, found, strict=True):
        assert other["scores"] == pytest.approx(one["scores"], rel=1e-6)


def test_the_pretrained_weights_are_those_of_the_origin(folder: Path) -> None:
    both = []
    for run in ("a", "single"):
        config = load_config_file(folder / "runs" / run / "config.yaml")
        info = choose_checkpoint(folder / "runs" / run / "checkpoints", None)
        both.append(weights_of(info, config))
    origin, adapted = both
    assert set(origin) < set(adapted)
    for name, weights in origin.items():
        assert weights.equal(adapted[name]), name


@pytest.mark.parametrize("run", [pytest.param("single", marks=pytest.mark.slow), "merged"])
def test_an_evaluation_repeats_the_results(folder: Path, run: str) -> None:
    if run == "merged":
        convert(folder / "runs" / "single", folder / "runs" / run, "--to", "ours")

    found = evaluated(folder, run)

    assert found["valid"]["metrics"] == results_of(folder, "single")["valid"]["metrics"]
    for one, other in zip(predictions_of(folder, "single"), found["predictions"], strict=True):
        assert other["scores"] == pytest.approx(one["scores"], abs=1e-5)
