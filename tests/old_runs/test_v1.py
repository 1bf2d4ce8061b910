"""Runs that version 1 left behind: they resume, generate and validate as they did then."""

import json
import shutil
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from glm_dist.checkpoint.folders import list_steps
from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig
from glm_dist.data.corpus.manifest import read_manifest, write_manifest
from glm_dist.errors import EXIT_USER_ERROR, CheckpointError, ConfigError, DataError
from glm_dist.train.preflight import check_files
from glm_dist.train.same_run import check_same_rows
from tests.messages import Says
from tests.old_runs.restore import expected, overrides_of, restore
from tests.train.jobs import glm_dist_command, with_python

EXPECTED = expected("v1")
SAME = ("train/loss", "train/grad_norm", "train/learning_rate", "valid/loss_span")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of both runs."""
    return restore("v1", tmp_path)


def records(run: Path, key: str) -> dict[int, float]:
    """One metric of a run by step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


def test_a_run_of_version_1_resumes_and_validates_with_the_numbers_of_then(root: Path) -> None:
    run = root / "spans"
    done = with_python([*overrides_of(run), "run.steps=8"])
    assert done.returncode == 0, done.stderr
    assert "loaded step=4" in done.stderr
    for key in SAME:
        then = {r["step"]: r[key] for r in EXPECTED["records"] if key in r}
        assert records(run, key) == pytest.approx(then, rel=1e-6)
    # What is saved now follows the rule of today's larger corpora: the same rows.
    newest = list_steps(run / "checkpoints")[0][1]
    assert newest.name == "step_0000008"
    identity = json.loads((newest / "manifest.json").read_text())["extra"]["data"]
    assert identity["row_rule"] == 2


def generate(run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Ask a run the question that version 1 answered."""
    typed = ["generate", str(run), EXPECTED["question"], "--greedy", "--max-tokens=8"]
    return glm_dist_command(*typed, *more)


def test_a_run_of_version_1_generates_what_it_did_then(root: Path) -> None:
    done = generate(root / "spans")
    # It decoded the whole text, and WordPiece takes the space in front of a full stop away.
    assert done.stdout.replace(" .", ".") == EXPECTED["answer"], done.stderr


def test_a_run_that_went_on_holds_its_tokenizer_and_can_be_moved(root: Path) -> None:
    run = root / "spans"
    done = with_python([*overrides_of(run), "run.steps=5", "evaluation=none"])
    assert done.returncode == 0, done.stderr
    (root / "vocab.txt").unlink()
    moved = run.rename(root / "moved")
    done = generate(moved)
    assert (done.returncode, done.stdout.count("[w")) == (0, 1), done.stderr

    vocabulary = moved / "tokenizer" / "vocab.txt"
    text = vocabulary.read_text()
    vocabulary.write_text(text.replace("w10\n", "v10\n"))  # of the same size
    done = generate(moved)
    assert done.returncode == EXIT_USER_ERROR
    assert "is not the tokenizer that" in done.stderr
    (root / "vocab.txt").write_text(text)
    assert generate(moved, "--tokenizer", str(root / "vocab.txt")).returncode == 0


def test_a_run_under_an_older_row_rule_is_not_continued(root: Path, says: Says) -> None:
    run = root / "mixed"
    with pytest.raises(CheckpointError) as caught:
        check_files(load_config([*overrides_of(run), "run.steps=4"]))
    assert f"{run}/checkpoints/step_0000002 was trained by row rule 1" in str(caught.value)
    assert f"run.init_from={run} run.init_with=weights_and_optimizer" in str(caught.value)
    says(caught.value)


def config_of(run: Path, *more: str) -> RunConfig:
    """Configuration of a stored run with changes."""
    return load_config([*overrides_of(run), *more])


@pytest.mark.parametrize(
    ("changes", "has_same_rows"),
    [
        ((), True),
        (("corruption.single_span_share=0.1",), False),
        (("corruption.short_share=0.1",), False),
        (("corruption=glm_doc",), False),
        (("corruption.task=causal_lm",), True),
        (("corruption.task=unilm",), False),
        (("data.corpora.more.prefix=x",), False),
    ],
    ids=["spans", "single", "short", "documents", "GPT", "UniLM", "two corpora"],
)
def test_the_first_two_row_rules_agree_where_nothing_takes_turns(
    changes: tuple[str, ...], has_same_rows: bool, root: Path
) -> None:
    config = config_of(root / "spans", *changes)
    current = {"tokenizer": "a", "row_rule": 2}
    refuses = pytest.raises(CheckpointError, match="by row rule 1,")
    with nullcontext() if has_same_rows else refuses:
        check_same_rows(config, root, extra={"data": {"tokenizer": "a"}}, current=current)


def test_a_row_rule_of_a_later_version_is_refused(root: Path) -> None:
    extra = {"data": {"row_rule": 99}}
    with pytest.raises(CheckpointError, match="row rule 99; this version of glm_dist knows rules"):
        check_same_rows(config_of(root / "spans"), root, extra=extra, current={})


def test_other_data_is_refused_before_the_job_as_in_the_job(root: Path) -> None:
    # Another corpus of the same name, and its own manifest with it.
    for ending in ("bin", "idx", "json"):
        shutil.copyfile(root / f"second.{ending}", root / f"first.{ending}")
    with pytest.raises(CheckpointError) as caught:
        check_files(config_of(root / "spans", "run.steps=8"))
    message = str(caught.value)
    assert message.startswith(f"{root}/spans/checkpoints/step_0000004 was trained on other data")
    assert "corpora.text.documents: 60 in the checkpoint, 30 now" in message


def test_bytes_that_are_not_those_of_the_manifest_are_found(root: Path) -> None:
    manifest = read_manifest(root / "first")
    assert manifest is not None
    write_manifest(root / "first", replace(manifest, bin_sha256=["0" * 64]))
    with pytest.raises(DataError, match=r"first\.bin is not the file that was prepared"):
        check_files(config_of(root / "spans", "run.steps=8"))


def test_the_same_corpora_in_another_order_are_refused(root: Path, says: Says) -> None:
    run = root / "mixed"
    corpora = [text for text in overrides_of(run) if text.startswith("data.corpora.")]
    others = [text for text in overrides_of(run) if text not in corpora]
    with pytest.raises(ConfigError) as caught:
        check_files(load_config([*others, "~data.corpora.text", *reversed(corpora)]))
    assert "more, text, but in the order text, more" in str(caught.value)
    says(caught.value)
