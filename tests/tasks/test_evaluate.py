"""Benchmarks over a small run: the same numbers in every layout, and those of the scores."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import numpy as np
import pytest

import glm_dist
from glm_dist.cli.main import main
from glm_dist.config.load import load_config
from glm_dist.errors import ConfigError, DataError
from glm_dist.generate.load import TrainedModel
from glm_dist.generate.score import Question
from glm_dist.observe.metrics_file import METRICS_FILE, read_records
from glm_dist.tasks import harness
from glm_dist.tasks.evaluate import Settings, evaluate, text_score
from glm_dist.tasks.examples import read_benchmarks, read_examples
from glm_dist.tasks.harness import Library
from tests.ranks import run_ranks
from tests.train.jobs import glm_dist_command, make_files, with_python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, and three files of examples."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{n}" for n in rng.integers(10, 900, count))

    records = {
        "choice": [
            {
                "inputs": f"{words(5)} [MASK] {words(3)}",
                "choices": [words(k) for k in (1, 3)],
                "label": int(rng.integers(2)),
            }
            for _ in range(21)
        ],
        "answer": [{"inputs": words(6), "targets": [words(1), words(2)]} for _ in range(9)],
        "text": [{"text": words(int(rng.integers(3, 200)))} for _ in range(7)],
    }
    for name, examples in records.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, examples)))
    tasks = f"evaluation.tasks=[{folder}/choice.jsonl,{folder}/text.jsonl]"
    options = ["run.name=a", "parallel=single", "run.steps=2", tasks]
    done = with_python([*make_files(folder), *options])
    assert done.returncode == 0, done.stderr
    return folder


Outcome = dict[str, tuple[dict[str, float], list[object]]]


def measure(folder: Path, sizes: dict[str, int], batch_size: int) -> Outcome:
    model = glm_dist.load(folder / "runs" / "a", **sizes)
    found = {}
    for name in ("choice", "answer", "text"):
        examples = read_examples(folder / f"{name}.jsonl")
        result = evaluate(model, examples, Settings(batch_size=batch_size))
        found[name] = ({k: m.value for k, m in result.metrics.items()}, result.predictions)
    return found


def by_hand(folder: Path) -> tuple[list[int], list[float]]:
    """Choices and log-probabilities of texts, from single scores."""
    model = glm_dist.load(folder / "runs" / "a")
    tokenizer, special = model.tokenizer, model.tokenizer.special
    chosen = []
    for line in (folder / "choice.jsonl").read_text().splitlines():
        record = json.loads(line)
        context = [special.cls, *tokenizer.encode(record["inputs"]), special.eos]
        place = context.index(special.mask)
        scores = [
            model.score([Question(context, place, [tokenizer.encode(choice)])])[0][0]
            for choice in record["choices"]
        ]
        chosen.append(int(np.argmax([score.log_probability for score in scores])))
    totals = []
    for line in (folder / "text.jsonl").read_text().splitlines():
        tokens = tokenizer.encode(json.loads(line)["text"])
        first = [special.cls, tokens[0], special.gmask]
        window = model.config.model.max_position_embeddings - 1
        if len(tokens) > window:
            totals.append(None)
            continue
        (score,) = model.score([Question(first, 2, [tokens[1:]])])[0]
        totals.append(score.log_probability)
    return chosen, totals


def test_results_are_those_of_single_scores_in_every_layout(folder: Path) -> None:
    (alone,) = run_ranks(measure, folder, {}, 1, world_size=1)
    ((chosen, totals),) = run_ranks(by_hand, folder, world_size=1)
    assert alone["choice"][1] == chosen
    assert None in totals
    assert sum(total is not None for total in totals) > 2
    for found, expected in zip(alone["text"][1], totals, strict=True):
        assert expected is None or found == pytest.approx(expected, abs=1e-4)
    labels = [json.loads(x)["label"] for x in (folder / "choice.jsonl").read_text().splitlines()]
    accuracy = float(np.mean([a == b for a, b in zip(chosen, labels, strict=True)]))
    assert alone["choice"][0]["accuracy"] == pytest.approx(accuracy)
    for sizes in ({"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}, {}):
        for found in run_ranks(measure, folder, sizes, 5, world_size=2):
            assert found["choice"][1] == chosen
            assert found["answer"][1] == alone["answer"][1]
            assert found["text"][1] == pytest.approx(alone["text"][1], rel=1e-5)
            assert found["text"][0] == pytest.approx(alone["text"][0], rel=1e-5)


def test_a_run_measures_its_benchmarks_at_every_validation(folder: Path) -> None:
    (alone,) = run_ranks(measure, folder, {}, 16, world_size=1)
    records = read_records(folder / "runs" / "a" / METRICS_FILE)
    last = [record for record in records if record["step"] == 2]
    found = {name: value for record in last for name, value in record.items()}

    for task in ("choice", "text"):
        for metric, value in alone[task][0].items():
            assert found[f"valid/task/{task}/{metric}"] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("override", ["zero=stage3", "parallel.sequence_parallel=true"], ids=str)
def test_layouts_that_cannot_generate_in_training_are_refused(
    override: str, tmp_path: Path
) -> None:
    options = ["experiment=tiny", "evaluation.tasks=[a.jsonl]", "parallel=tp2", override]
    with pytest.raises(ConfigError, match=r"evaluation\.tasks cannot be measured"):
        load_config(options)
    (tmp_path / "b").mkdir()
    same_names = f"evaluation.tasks=[{tmp_path}/a.jsonl,{tmp_path}/b/a.jsonl]"
    with pytest.raises(ConfigError, match="several files named a"):
        read_benchmarks(load_config(["experiment=tiny", same_names]))


def every_token_counts(folder: Path) -> None:
    """Each token of a text but the first is scored once, whatever the windows."""
    model = glm_dist.load(folder / "runs" / "a")
    text = " ".join(f"w{10 + n}" for n in range(100))
    for unidirectional in (False, True):
        for window, stride in ((9, 3), (10, 7), (30, 29), (31, 1)):
            settings = Settings(window=window, stride=stride, unidirectional=unidirectional)
            assert text_score(model, text, settings)[1] == 99


def test_windows_score_every_token_once(folder: Path) -> None:
    run_ranks(every_token_counts, folder, world_size=1)


@pytest.mark.parametrize(
    "options",
    [
        ["--json", f"{__file__}/r.json"],
        ["--json", ""],
        ["--rows", "4"],
        ["--length-penalty", "nan"],
        ["--pattern", "{inputs"],
        ["--pattern", ""],
    ],
    ids=lambda options: options[0],
)
def test_options_are_checked_before_the_model_is_loaded(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(folder / "choice.jsonl")
    assert main(["evaluate", str(folder / "runs" / "a"), file, *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_every_rank_has_the_results_of_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    of_first_rank = {"fact": {"acc,none": 0.5}}
    model = SimpleNamespace(from_first_rank=lambda own: own or of_first_rank)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", SimpleNamespace(LM=object))
    for returned in ({"results": {"fact": {"acc,none": 0.5, "alias": "fact"}}}, None):
        library = Library(Mock(simple_evaluate=Mock(return_value=returned)), None)
        found = harness.evaluate(cast(TrainedModel, model), ["fact"], Settings(), library=library)
        assert found == of_first_rank


def test_a_missing_harness_is_noticed_before_the_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("glm_dist.cli.benchmarks.load_for", Mock(side_effect=AssertionError))
    assert main(["evaluate", str(folder / "runs" / "a"), "--harness", "fact"]) == 2
    assert "--harness needs lm-evaluation-harness" in capsys.readouterr().err


def short_texts(folder: Path) -> None:
    model = glm_dist.load(folder / "runs" / "a")
    file = folder / "short.jsonl"
    lines = ['{"text": "w10 w11 w12"}', '{"text": ""}', '{"text": "w10"}']
    results = []
    for count in (1, 3):
        file.write_text("\n".join(lines[:count]))
        results.append(evaluate(model, read_examples(file), Settings()))
    for name in ("perplexity", "word_perplexity", "bits_per_byte"):
        assert results[0].metrics[name].value == results[1].metrics[name].value
    assert results[1].predictions[1:] == [None, None]
    file.write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="No text has two tokens"):
        evaluate(model, read_examples(file), Settings())
    with pytest.raises(ConfigError, match=r"--window 999 is longer than the \d+ tokens"):
        text_score(model, "w10 w11", Settings(window=999))
    file.write_text(json.dumps({"inputs": "w10 [MASK]", "choices": ["w10 " * 999], "label": 0}))
    with pytest.raises(DataError, match=r"short\.jsonl:1: An answer has 999 tokens"):
        evaluate(model, read_examples(file), Settings())


def test_texts_without_a_scored_token_are_left_out_and_lines_named(folder: Path) -> None:
    run_ranks(short_texts, folder, world_size=1)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return glm_dist_command("evaluate", str(folder / "runs" / "a"), *arguments)


def test_the_command_prints_a_table_and_writes_json(folder: Path, tmp_path: Path) -> None:
    done = command(folder, str(folder / "choice.jsonl"), "--json", str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "r.json").read_text())

    accuracy = written["tasks"][0]["metrics"]["accuracy"]["value"]
    assert f"{accuracy:.4g}" in done.stdout
    assert "95 % interval" in done.stdout
    assert len(written["tasks"][0]["predictions"]) == 21
    (tmp_path / "link").symlink_to(tmp_path / "r.json")
    again = command(folder, str(folder / "choice.jsonl"), "--json", str(tmp_path / "link"))
    assert (again.returncode, (tmp_path / "link").is_symlink()) == (0, True)
    done = command(folder, str(folder / "choice.jsonl"), "--json", "/dev/stdout")
    assert json.loads(done.stdout[done.stdout.index("{") :])["step"] == 2
    wrong = command(folder, str(folder / "choice.jsonl"), "--metrics", "acc")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("ConfigError: --metrics 'acc' is unknown")
