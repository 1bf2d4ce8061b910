"""Start of a run: its own checkpoint, or the weights (and optimizer) of another run."""

import re
import shutil
from pathlib import Path

import pytest

from glm_dist.observe.metrics_file import METRICS_FILE, read_records
from tests.data.corpora import make_documents, write_corpus
from tests.messages import Says
from tests.train.jobs import glm_dist_command, make_files, with_python, with_ranks

WITH_OPTIMIZER = "run.init_with=weights_and_optimizer"


def metrics(folder: Path, run: str, prefix: str) -> dict[int, dict[str, float]]:
    """Metrics of a run whose names begin with a prefix, by step; later attempts win."""
    found: dict[int, dict[str, float]] = {}
    for record in read_records(folder / "runs" / run / METRICS_FILE):
        chosen = {name: value for name, value in record.items() if name.startswith(prefix)}
        if chosen:
            found.setdefault(record["step"], {}).update(chosen)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run ``a`` of 4 steps with checkpoints of 2 and 4, and the overrides it had."""
    folder = tmp_path_factory.mktemp("source")
    overrides = make_files(folder)
    (done, _) = with_ranks([*overrides, "run.name=a", "parallel=dp2", "zero=stage1"], 2)
    assert done.returncode == 0, done.stderr
    return folder, overrides


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(["parallel=tp2"], id="tp2"),
        pytest.param(["parallel=pp2"], id="pp2"),
        pytest.param(["parallel=dp2", "zero=stage3", "batch.micro_batch_size=1"], id="zero3"),
    ],
)
def test_weights_of_a_run_start_another_one_in_another_layout(
    layout: list[str], source: tuple[Path, list[str]], request: pytest.FixtureRequest
) -> None:
    folder, overrides = source
    name = f"b_{request.node.callspec.id}"
    (done, _) = with_ranks(
        [
            *overrides,
            f"run.name={name}",
            f"run.init_from={folder}/runs/a",
            "run.steps=1",
            "checkpoint.interval=0",
            *layout,
        ],
        2,
    )
    assert done.returncode == 0, done.stderr

    first = metrics(folder, name, "valid/loss_")[0]
    assert first == pytest.approx(metrics(folder, "a", "valid/loss_")[4], abs=1e-5)
    assert re.search(
        r"weights from=\S+step_0000004 step=4 loaded=\d+ grown=0 new=0 unused=0", done.stderr
    )


def test_weights_and_optimizer_continue_as_resuming_does(source: tuple[Path, list[str]]) -> None:
    folder, overrides = source
    checkpoint = folder / "runs" / "a" / "checkpoints" / "step_0000002"
    (done, _) = with_ranks(
        [*overrides, "run.name=c", f"run.init_from={checkpoint}", WITH_OPTIMIZER, "parallel=pp2"],
        2,
    )
    assert done.returncode == 0, done.stderr

    continued, resumed = (metrics(folder, run, "") for run in ("c", "a"))
    for step in (3, 4):
        for name in ("train/loss", "train/grad_norm", "train/learning_rate"):
            assert continued[step][name] == pytest.approx(resumed[step][name], abs=1e-5), name
    assert 1 not in metrics(folder, "c", "train/")


def test_grown_position_tables_and_a_new_head_are_said(source: tuple[Path, list[str]]) -> None:
    folder, overrides = source
    done = with_python(
        [
            *overrides,
            "run.name=d",
            f"run.init_from={folder}/runs/a",
            "parallel=single",
            "run.steps=1",
            "model.max_position_embeddings=1030",
            "model.num_classes=3",
        ]
    )
    assert done.returncode == 0, done.stderr

    assert (
        "weights longer than in the checkpoint: embedding.block_position_embeddings.weight,"
        " embedding.position_embeddings.weight" in done.stderr
    )
    assert (
        "weights not in the checkpoint: classifier.output.bias, classifier.output.weight,"
        " classifier.pool.bias, classifier.pool.weight" in done.stderr
    )
    assert "only in the checkpoint" not in done.stderr


def test_the_architecture_alone_leaves_the_weights_to_the_seed(
    source: tuple[Path, list[str]],
) -> None:
    folder, overrides = source
    first = {}
    for name, origin in (("drawn", []), ("alike", [f"run.init_from={folder}/runs/a"])):
        more = [*origin, "run.init_with=architecture", "parallel=single", "run.steps=1"]
        done = with_python([*overrides, f"run.name={name}", *more])
        assert done.returncode == 0, done.stderr
        assert bool(origin) == ("gave the architecture only" in done.stderr)
        first[name] = metrics(folder, name, "train/loss")[1]

    assert first["alike"] == first["drawn"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["run.init_from=/nowhere"], "run.init_from=/nowhere holds no usable checkpoint"),
        (["model.hidden_size=64"], "decoder.final_layernorm.bias: (32,) saved, (64,) here"),
        (["model.num_layers=3"], "decoder.layers.2.mlp.linear_fc1.bias: not saved"),
        (
            ["model.num_layers=1", "run.init_with=architecture"],
            "decoder.layers.1.mlp.linear_fc1.bias: saved, but not in this model",
        ),
        pytest.param([WITH_OPTIMIZER], "run.steps=4 are done", marks=pytest.mark.slow),
    ],
    ids=["nothing there", "another model", "new layer", "fewer layers", "nothing left"],
)
def test_an_origin_that_does_not_fit_is_refused_in_words(
    changes: list[str], words: str, source: tuple[Path, list[str]]
) -> None:
    folder, overrides = source
    origin = f"run.init_from={folder}/runs/a"

    done = with_python([*overrides, "run.name=e", "parallel=single", origin, *changes])

    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "training run=" not in done.stderr


def test_a_corpus_and_skipped_rows_may_enter_a_running_job(
    source: tuple[Path, list[str]],
) -> None:
    folder, overrides = source
    more = write_corpus(folder, "more", make_documents(60, seed=1))
    job = [*overrides, "parallel=single"]
    later = [
        f"data.corpora.more.prefix={more}",
        "data.corpora.more.weight=0",
        "data.stage_starts=[8]",  # two steps of four rows
        "data.corpora.more.stage_weights=[3]",
        "data.corpora.text.stage_weights=[1]",
        "data.skip_rows=[9-11,14-14]",
    ]
    runs = [
        ["run.name=entered", "run.steps=2"],
        ["run.name=entered", *later],
        ["run.name=whole", *later],
    ]
    for changes in runs:
        done = with_python([*job, *changes])
        assert done.returncode == 0, done.stderr

    entered, whole = (metrics(folder, run, "") for run in ("entered", "whole"))
    for step in (1, 2, 3, 4):
        for name in ("train/loss", "data/epochs_text"):
            assert entered[step][name] == whole[step][name]
    assert entered[2].get("data/epochs_more", 0) == 0 < entered[4]["data/epochs_more"]
    assert {"valid/loss_span/text", "valid/loss_span/more"} <= entered[4].keys()

    done = with_python([*job, "run.name=entered", *later, "data.skip_rows=[7-7]"])
    assert done.returncode == 2
    assert "data.skip_rows" in done.stderr


@pytest.fixture(scope="module")
def converted(source: tuple[Path, list[str]]) -> Path:
    """Run ``a`` as an official checkpoint of two parts, and that one as a run again."""
    folder, _ = source
    official, run = folder / "official", folder / "runs" / "converted"
    heads, tokenizer = "model.num_attention_heads=2", f"tokenizer.path={folder / 'vocab.txt'}"
    for arguments in (
        (folder / "runs" / "a", official, "--to=official", "--dtype=fp32"),
        (official, run, heads, tokenizer, "tokenizer.task_masks=true"),
    ):
        done = glm_dist_command("convert", *map(str, arguments))
        assert done.returncode == 0, done.stderr
    return run


def test_converted_weights_start_a_run_with_the_loss_they_had(
    source: tuple[Path, list[str]], converted: Path
) -> None:
    folder, overrides = source
    (done, _) = with_ranks(
        [*overrides, "run.name=e", f"run.init_from={converted}", "parallel=tp2", "run.steps=1"], 2
    )
    assert done.returncode == 0, done.stderr

    first = metrics(folder, "e", "valid/loss_")[0]
    assert first == pytest.approx(metrics(folder, "a", "valid/loss_")[4], abs=1e-5)
    assert re.search(r"step=4 loaded=\d+ grown=0 new=0 unused=0", done.stderr)


@pytest.mark.parametrize("way", ["resumed", "with its optimizer"])
def test_nothing_goes_on_from_weights_without_an_optimizer(
    source: tuple[Path, list[str]], converted: Path, way: str, tmp_path: Path, says: Says
) -> None:
    _, overrides = source
    typed = [*overrides, "parallel=single", "run.steps=9", "run.name=f", f"paths.runs={tmp_path}"]
    if way == "resumed":
        shutil.copytree(converted / "checkpoints", tmp_path / "f" / "checkpoints")
    else:
        typed += [f"run.init_from={converted}", WITH_OPTIMIZER]

    checked, done = glm_dist_command("check", *typed), with_python(typed)

    assert (checked.returncode, done.returncode) == (2, 2), done.stderr
    assert checked.stderr in done.stderr
    says(checked.stderr.replace(str(converted), "<converted>"))
