"""Finetuning by the command: the results of every layout, of an evaluation and of new examples."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from glm_dist.cli.main import main
from glm_dist.cli.train import configure
from glm_dist.errors import ConfigError, DataError, GlmDistError
from glm_dist.plan.wording import gib
from glm_dist.tasks.results import PREDICTIONS, RESULTS_FILE
from glm_dist.tasks.trained_run import open_task
from tests.messages import Says
from tests.train.jobs import glm_dist_command, make_files, with_python, with_ranks

CHOICES = """
kind: cloze
data: {train: FOLDER/train.jsonl, valid: FOLDER/valid.jsonl, test: FOLDER/test.jsonl}
pattern: "{text} w6 [MASK]."
answers: {from: choices}
loss: mix
max_length: 64
epochs: 2
metrics: [accuracy, macro_f1]
"""

WRITTEN = """
kind: seq2seq
data: {train: FOLDER/train.jsonl, valid: FOLDER/valid.jsonl}
pattern: "[sMASK] {text}"
target: "{answer}"
source_length: 48
target_length: 8
label_smoothing: 0.1
decode: {beams: 2, no_repeat_ngram: 2}
epochs: 1
metrics: [em, f1]
"""

SIZES = {"train": 22, "valid": 9, "test": 5}
"""None divides by the batch, or by replicas."""


def record(rng: random.Random) -> dict[str, Any]:
    words = [f"w{rng.randrange(10, 900)}" for _ in range(rng.randrange(3, 20))]
    choices = [f"w{n} w{n + 1}" for n in rng.sample(range(10, 900), rng.randrange(2, 4))]
    label = rng.randrange(len(choices))
    return {"text": " ".join(words), "choices": choices, "label": label, "answer": words[0]}


def write_task(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(text.replace("FOLDER", str(folder)))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained run of one step, examples, and two tasks."""
    folder = tmp_path_factory.mktemp("finetune")
    rng = random.Random(0)
    for split, count in SIZES.items():
        lines = [json.dumps(record(rng)) + "\n" for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    write_task(folder, "choices", CHOICES)
    write_task(folder, "written", WRITTEN)
    write_task(folder, "broken", "kind: cloze\nmetrics: [accuracy\n")
    done = with_python([*make_files(folder), "run.name=a", "parallel=single", "run.steps=1"])
    assert done.returncode == 0, done.stderr
    return folder


def typed(folder: Path, task: str, name: str, *more: str) -> list[str]:
    return [
        f"task={folder}/{task}.yaml",
        f"run.init_from={folder}/runs/a",
        f"run.name={name}",
        f"paths.runs={folder}/runs",
        "batch.global_batch_size=4",
        "batch.micro_batch_size=2",
        "optimizer.learning_rate=1e-3",
        "checkpoint.background=false",
        "data.num_workers=0",
        *more,
    ]


def results_of(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / name / RESULTS_FILE).read_text())
    return found


def predictions_of(folder: Path, name: str) -> list[dict[str, Any]]:
    text = (folder / "runs" / name / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def finetuned(folder: Path) -> str:
    """The choices, learned by one process; also the words of the log."""
    done = glm_dist_command("finetune", *typed(folder, "choices", "single", "parallel=single"))
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_log_begins_with_what_is_learned(finetuned: str) -> None:
    assert "examples: train=22 valid=9 test=5" in finetuned
    # 22 examples in batches of 4 are 5.5 steps an epoch
    assert "steps=11 steps_of_epoch=6" in finetuned
    assert "pattern: {text} w6 [MASK]." in finetuned
    assert "w6 [MASK] ." in finetuned.partition("first prompt: ")[2].partition("\n")[0]
    assert "(right)" in finetuned.partition("its answers: ")[2].partition("\n")[0]


def test_a_plan_has_the_steps_and_rows_of_the_examples(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, table = typed(folder, "choices", "planned"), folder / "plan.json"
    script = folder / "plan.sh"
    written = ["--json", str(table), "--write", str(script)]
    assert main(["plan", *words, "--gpus", "2", *written]) == 0
    assert "launch 'finetune task=" in script.read_text()
    # Two epochs of 5.5 steps; an example has three choices at most.
    assert "11 steps of 12 rows x " in capsys.readouterr().out
    for plan in json.loads(table.read_text())["plans"][::8]:
        said = ["check", *words, *plan["overrides"], "--processes", "2", "--gpu", "v100-16"]
        assert main(said) == 0
        found = capsys.readouterr().out
        assert f"memory      {gib(plan['memory']['total'])} on a GPU" in found
    capsys.readouterr()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    first = json.loads(table.read_text())["plans"][0]
    assert main(["dryrun", *words, *first["overrides"], "--processes", "2"]) == 0
    activations = gib(first["memory"]["activations"])
    assert f"planned {activations}" in capsys.readouterr().out
    assert main([*said, "--no-files"]) == 0
    assert "its examples were not read" in capsys.readouterr().out


def test_results_are_those_of_the_predictions(folder: Path, finetuned: str) -> None:
    results = results_of(folder, "single")
    assert results["task"] == "choices"
    assert results["last"]["step"] == 11
    for split, file in PREDICTIONS.items():
        lines = (folder / "runs" / "single" / file).read_text().splitlines()
        found = [json.loads(line) for line in lines]
        records = (folder / f"{split.value}.jsonl").read_text().splitlines()
        assert [each["label"] for each in found] == [json.loads(r)["label"] for r in records]
        right = [each["prediction"] == each["label"] for each in found]
        accuracy = results[split.value]["metrics"]["accuracy"]
        assert accuracy["value"] == pytest.approx(sum(right) / len(right))
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        for each, line in zip(found, records, strict=True):
            assert len(each["scores"]) == len(json.loads(line)["choices"])


@pytest.mark.parametrize(
    ("name", "processes", "options"),
    [
        pytest.param("tp2", 2, ["parallel=tp2"], marks=pytest.mark.slow, id="tp2"),
        pytest.param("zero3", 2, ["parallel=dp2", "zero=stage3"], id="dp2 ZeRO 3"),
        pytest.param("pp2", 2, ["parallel=pp2"], marks=pytest.mark.slow, id="pp2"),
        pytest.param(
            "zero2", 2, ["parallel=dp2", "zero=stage2"], marks=pytest.mark.slow, id="dp2 ZeRO 2"
        ),
    ],
)
def test_every_layout_gives_the_results_of_one_process(
    folder: Path, finetuned: str, name: str, processes: int, options: list[str]
) -> None:
    for done in with_ranks(typed(folder, "choices", name, *options), processes):
        assert done.returncode == 0, done.stderr
    alone, found = results_of(folder, "single"), results_of(folder, name)
    assert found["last"]["valid"]["loss"] == pytest.approx(alone["last"]["valid"]["loss"], rel=1e-4)
    for one, other in zip(
        predictions_of(folder, "single"), predictions_of(folder, name), strict=True
    ):
        assert other["scores"] == pytest.approx(one["scores"], rel=1e-4)


def test_evaluation_of_the_run_repeats_its_results(folder: Path, finetuned: str) -> None:
    results = results_of(folder, "single")
    step = f"--step={results['step']}"
    out = str(folder / "evaluated.json")
    done = glm_dist_command("evaluate", str(folder / "runs" / "single"), step, "--json", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(Path(out).read_text())
    assert found["valid"]["metrics"] == results["valid"]["metrics"]
    assert [each["prediction"] for each in found["predictions"]] == [
        each["prediction"] for each in predictions_of(folder, "single")
    ]


def test_the_run_resumes_as_the_same_run(folder: Path, finetuned: str) -> None:
    run = folder / "runs" / "single"
    done = glm_dist_command("resume-check", str(run), "--step=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-equal to the checkpoint of step 11" in done.stdout


@pytest.mark.parametrize("command", [["data", "trace"], ["data", "inspect"], ["data", "blend"]])
def test_corpora_of_a_finetuned_run_are_not_looked_for(
    folder: Path, finetuned: str, command: list[str]
) -> None:
    done = glm_dist_command(*command, str(folder / "runs" / "single"))
    assert done.returncode == 2
    assert "task.kind=cloze learns from examples, so this run has no rows of corpora" in done.stderr


def test_new_examples_are_answered_without_labels(folder: Path, finetuned: str) -> None:
    lines = ['{"text": "w40", "choices": ["w50", "w60 w61"]}', '{"choices": ["w50"]}']
    lines += [" "]  # passed over, as in a file
    done = glm_dist_command("generate", str(folder / "runs" / "single"), "--task", "own", *lines)
    assert done.returncode == 2
    assert "no field 'text'" in done.stderr
    assert "1 examples were left out" in done.stderr
    (answer,) = map(json.loads, done.stdout.splitlines())
    scores = answer["scores"]
    assert list(scores) == ["w50", "w60 w61"]
    assert answer["prediction"] == max(scores, key=scores.__getitem__)


def test_head_of_a_classifier_has_an_output_for_each_label(folder: Path, says: Says) -> None:
    more = ["task.kind=classify", "task.answers={a: w7, b: w8, c: w9}", "task.data.label=class"]
    more += ["task.data.test=null", "task.metrics=[accuracy]", "task.max_length=64"]
    for split in ("train", "valid"):
        file = folder / f"{split}.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        classed = [{**r, "class": "abc"[n % 3]} for n, r in enumerate(records)]
        (folder / f"classed_{split}.jsonl").write_text("\n".join(map(json.dumps, classed)))
        more.append(f"task.data.{split}={folder}/classed_{split}.jsonl")
    typed_in = typed(folder, "written", "classes", "parallel=single", "run.steps=2", *more)
    done = glm_dist_command("finetune", *typed_in)
    assert done.returncode == 0, done.stderr
    found = predictions_of(folder, "classes")
    assert [each["label"] for each in found] == [n % 3 for n in range(SIZES["valid"])]
    assert {len(each["scores"]) for each in found} == {3}
    origin = f"run.init_from={folder}/runs/classes"
    assert configure(typed(folder, "choices", "next", origin), None).config.model.num_classes == 0
    two = ["task.kind=classify", "task.answers={a: w7, b: w8}", *more[2:]]
    with pytest.raises(ConfigError, match="2 classes") as caught:
        open_task(folder / "runs/classes", f"{folder}/written.yaml", two, splits=(), batch_size=1)
    says(caught.value)


def test_answers_are_written_and_compared(folder: Path) -> None:
    done = glm_dist_command("finetune", *typed(folder, "written", "written", "parallel=single"))
    assert done.returncode == 0, done.stderr
    results = results_of(folder, "written")
    assert results["test"] is None
    assert set(results["valid"]["metrics"]) == {"em", "f1"}
    records = [json.loads(line) for line in (folder / "valid.jsonl").read_text().splitlines()]
    found = predictions_of(folder, "written")
    assert [each["label"] for each in found] == [[each["answer"]] for each in records]
    assert all(isinstance(each["prediction"], str) for each in found)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["run.init_from=null"], id="no run"),
        pytest.param(["task.data.valid=null"], id="no examples"),
        pytest.param(["run.steps=3", "task.epochs=2"], id="steps and epochs"),
        pytest.param(["task.epoch_steps=2"], id="counted"),
        pytest.param(["task=nothing.yaml"], id="no file"),
        pytest.param(["task.kind=none"], id="no kind"),
        pytest.param(["task=FOLDER/broken.yaml"], id="no YAML"),
        pytest.param(["task.max_length=1000"], id="positions"),
        pytest.param(["task=FOLDER/written.yaml", "corruption=bert"], id="objective"),
        pytest.param(["task.metrics=[rouge]"], id="metric"),
        pytest.param(
            ["task.kind=seq2seq", "task.target='{answer}'", "task.metrics=[em]", "zero=stage3"],
            id="writing",
        ),
    ],
)
def test_what_cannot_be_finetuned_is_refused(folder: Path, more: list[str], says: Says) -> None:
    more = [text.replace("FOLDER", str(folder)) for text in more]
    with pytest.raises(GlmDistError) as caught:
        configure(typed(folder, "choices", "refused", *more), None)
    assert isinstance(caught.value, ConfigError | DataError)
    says(caught.value)


@pytest.mark.slow
def test_sweep_compares_losses_on_the_test_examples(folder: Path) -> None:
    overrides = typed(folder, "choices", "tries", "task.loss=mix,cross_entropy", "run.seed=1,2")
    done = glm_dist_command("sweep", "--jobs", "2", "finetune", *overrides)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "runs/tries.sweep/sweep.json").read_text())
    (group,) = report["groups"]
    assert (group["metric"], group["examples"], group["test_examples"]) == ("accuracy", 9, 5)
    first, second = group["rows"]
    runs = [results_of(folder, f"tries-loss_mix-seed_{seed}") for seed in (1, 2)]
    assert first["test"]["value"] == pytest.approx(
        sum(run["test"]["metrics"]["accuracy"]["value"] for run in runs) / 2
    )
    assert second["pairs"] == 2
    assert second["difference"]["value"] == pytest.approx(
        second["test"]["value"] - first["test"]["value"]
    )
