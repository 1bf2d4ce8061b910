"""A trained run as a library sees it: in any layout, again and again, quietly."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import glm_dist
from glm_dist.data.row_source import open_row_source
from glm_dist.errors import CheckpointError, LaunchError
from glm_dist.generate.sampling import GenerationOptions, Sampling
from glm_dist.observe.metrics_file import METRICS_FILE, read_records
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.train.evaluate import validation_losses
from tests.data.corpora import make_documents, write_corpus
from tests.ranks import run_ranks
from tests.train.jobs import glm_dist_command, make_files, start, with_python

TEXT = "w10 [MASK] w11 w12 [MASK] w13"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, validated and saved at its end."""
    folder = tmp_path_factory.mktemp("trained")
    done = with_python([*make_files(folder), "run.name=a", "parallel=single", "run.steps=2"])
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "a"


Measured = tuple[dict[str, float], str, list[tuple[str, float]]]


def measure(folder: Path, layouts: list[dict[str, int]]) -> list[Measured]:
    """Validation losses, filled texts and answers in each layout, one model after the other."""
    enable_cpu()
    answers = []
    for layout in layouts:
        model = glm_dist.load(folder, **layout)
        source = open_row_source(model.config)
        losses = validation_losses(
            model,
            source.validation,
            num_rows=model.config.evaluation.rows_per_objective,
            micro_batch_size=2,
            device=torch.device("cpu"),
        )
        assert model.step == 2
        likeliest = [(a.text, a.probability) for a in model.answers(TEXT, max_tokens=2)[1]]
        drawn = model.complete(TEXT, max_tokens=4, sampling=Sampling(temperature=2.0), seed=7)
        for options in (
            {"sampling": Sampling(temperature=2.0), "seed": 7, "max_tokens": 4},
            {"sampling": Sampling(temperature=2.0), "stop": ("w1", "w2 w"), "max_tokens": 9},
            {"max_tokens": 4, "min_tokens": 4},
        ):
            chosen = GenerationOptions(**options)
            assert "".join(model.stream(TEXT, chosen)) == model.fill([TEXT], chosen)[0].text
        texts = f"{model.complete(TEXT, max_tokens=4)} {drawn}"
        answers.append((losses, texts, likeliest))
    return answers


def test_a_loaded_model_equals_the_trained_one_in_every_layout(run_folder: Path) -> None:
    records = read_records(run_folder / METRICS_FILE)
    expected = {
        name.removeprefix("valid/loss_"): loss
        for record in records
        if record["step"] == 2
        for name, loss in record.items()
        if name.startswith("valid/loss_")
    }
    assert set(expected) == {"span", "sentence", "document"}
    layouts = [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}, {}]

    ((alone, text, answers),) = run_ranks(measure, run_folder, [{}], world_size=1)[0]
    assert alone == pytest.approx(expected, abs=1e-5)
    for of_rank in run_ranks(measure, run_folder, layouts, world_size=2):
        for losses, filled, found in of_rank:
            assert losses == pytest.approx(expected, abs=1e-5)
            assert filled == text
            assert [spelt for spelt, _ in found] == [spelt for spelt, _ in answers]
            assert [p for _, p in found] == pytest.approx([p for _, p in answers], rel=1e-4)


def test_a_program_loads_models_quietly_and_keeps_its_environment(run_folder: Path) -> None:
    program = f"""
import os, sys
before = dict(os.environ)
import glm_dist
assert "torch" not in sys.modules
first, second = (glm_dist.load({str(run_folder)!r}) for _ in range(2))
assert first.complete({TEXT!r}, max_tokens=4) == second.complete({TEXT!r}, max_tokens=4)
changed = {{name for name in os.environ if os.environ[name] != before.get(name)}}
assert changed <= {{"TORCHINDUCTOR_CACHE_DIR"}}, changed  # torch's own doing
"""
    # As a notebook in a batch job: several tasks are reserved, and this process is alone.
    done = start([sys.executable, "-c", program], SLURM_NTASKS="8")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def wrong_loads(folder: Path) -> list[str]:
    """What is said about a step that is missing, and about ranks that do not fit."""
    enable_cpu()
    with pytest.raises(CheckpointError) as no_step:
        glm_dist.load(folder, step=3)
    with pytest.raises(LaunchError) as no_layout:
        glm_dist.load(folder, tensor_parallel_size=2)
    return [str(no_step.value), str(no_layout.value)]


def test_a_missing_step_and_a_wrong_layout_are_answered_in_words(run_folder: Path) -> None:
    (no_step, no_layout) = run_ranks(wrong_loads, run_folder, world_size=1)[0]

    assert no_step.startswith(
        f"There is no checkpoint of step 3 in {run_folder}/checkpoints; there are: 2."
    )
    assert no_layout.startswith("1 processes do not divide into replicas of tensor_parallel_size=2")


def test_losses_of_either_split_and_of_another_corpus_are_measured(
    run_folder: Path, tmp_path: Path
) -> None:
    more = write_corpus(tmp_path, "more", make_documents(30, seed=1))
    records = read_records(run_folder / METRICS_FILE)
    (trained,) = (record["valid/loss_span"] for record in records if "valid/loss_span" in record)
    outputs = [
        glm_dist_command("evaluate", str(run_folder), *options)
        for options in (["--rows=4"], ["--split=test"], ["--corpus", f"more={more}"])
    ]

    assert [done.returncode for done in outputs] == [0, 0, 0], outputs[-1].stderr
    measured, test, both = (dict(map(str.split, lines(done))) for done in outputs)
    assert float(measured["span"]) == pytest.approx(trained, abs=1e-4)
    assert set(test) == {"span", "sentence", "document"}
    assert test["span"] != measured["span"]
    assert {"span/text", "span/more", "span"} <= set(both)
    wrong = glm_dist_command("evaluate", str(run_folder), "--corpus", f"text={more}")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(f"ConfigError: --corpus text={more} has a name that is taken.")


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Name and loss of each line."""
    return [" ".join(line.split()[:2]) for line in done.stdout.splitlines()]
