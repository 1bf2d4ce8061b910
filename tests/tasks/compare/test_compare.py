"""A comparison from the command line: every job once, then a table; what is finished stays."""

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from glm_dist.cli.main import main
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import GlmDistError
from glm_dist.generate.load import TrainedModel, load_trained
from glm_dist.generate.score import Question
from glm_dist.tasks.compare.last_words import read_last_words
from glm_dist.tasks.compare.plan import plan
from tests.messages import Says
from tests.ranks import run_programs, run_ranks
from tests.tasks.compare.toys import OBJECTIVES, make_comparison
from tests.train.jobs import BIN, glm_dist_command, rank_environments, start


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def finished(overrides: list[str]) -> tuple[Path, CompletedProcess[str]]:
    """Folder and output of a comparison in one process."""
    result = glm_dist_command("compare", *overrides)
    assert result.returncode == 0, result.stderr
    return runs_of(overrides) / "toy", result


def runs_of(overrides: list[str]) -> Path:
    return Path(
        next(text for text in overrides if text.startswith("paths.runs=")).partition("=")[2]
    )


def attempts(folder: Path) -> dict[str, int]:
    """Starts of each run."""
    files = folder.glob("*/provenance.json")
    return {f.parent.name: len(json.loads(f.read_text())["attempts"]) for f in files}


def test_objectives_and_random_weights_are_in_the_table(
    finished: tuple[Path, CompletedProcess[str]],
) -> None:
    folder, result = finished
    assert result.stdout == (folder / "table.md").read_text()
    table = json.loads((folder / "table.json").read_text())
    assert table["reference"] == "glm_mixed"
    assert table["num_examples"] == {"ending": 40}
    assert [cell["first"] for cell in table["cells"]] == [*OBJECTIVES, "random"]
    assert set(table["cells"][0]["differences"]) == {"random"}
    assert set(table["cells"][1]["differences"]) == {"random", "glm_mixed"}
    budgets = {each["objective"]: each["budget"] for each in table["pretrained"]}
    # Two steps of 4 rows of 96 tokens each.
    assert {budget["computed"] for budget in budgets.values()} == {768}
    # GPT predicts every token but what follows a document's end; the others at most 40 %.
    assert budgets["gpt"]["predicted"] > 0.95 * 768 > budgets["bert"]["predicted"] * 2
    assert all(each["core_seconds"] > 0 for each in table["pretrained"])
    assert all(each["words"]["num_words"] == 8 for each in table["pretrained"])


def test_a_comparison_does_only_what_is_missing(
    finished: tuple[Path, CompletedProcess[str]], overrides: list[str]
) -> None:
    folder, _ = finished
    table = (folder / "table.md").read_text()
    assert set(attempts(folder).values()) == {1}
    shutil.rmtree(folder / "t5-ending-1")
    more = glm_dist_command("compare", *overrides)
    assert more.returncode == 0, more.stderr
    assert set(attempts(folder).values()) == {1}  # the removed one begins again
    rows = [line for line in more.stdout.splitlines() if line.startswith("| ending")]
    assert rows == [line for line in table.splitlines() if line.startswith("| ending")]


def words_by_generation(folder: Path, words: Path, objective: str) -> float:
    """Nats per last word as generation scores answers, with cached keys and values."""
    model = load_trained(folder / f"pretrain-{objective}")
    questions = [question(model, each.text, each.word) for each in read_last_words(words)]
    scores = [score.log_probability for (score,) in model.score(questions)]
    return -sum(scores) / len(scores)


def question(model: TrainedModel, text: str, word: str) -> Question:
    tokenizer: Tokenizer = model.tokenizer
    context = [tokenizer.special.cls, *tokenizer.encode_document(text)]
    if model.config.corruption.task.name == "blank_infilling":
        context.append(tokenizer.special.mask)
    answers = [tokenizer.encode_document(word)]
    return Question(context, len(context) - 1, answers)


@pytest.mark.parametrize("objective", ["glm_mixed", "gpt"])
def test_last_words_are_scored_as_generation_scores_them(
    finished: tuple[Path, CompletedProcess[str]], overrides: list[str], objective: str
) -> None:
    folder, _ = finished
    words = Path(overrides[-1].partition("=")[2])
    (expected,) = run_ranks(words_by_generation, folder, words, objective, world_size=1)
    stored = json.loads((folder / f"pretrain-{objective}" / "last_words.json").read_text())
    assert stored["nats"] == pytest.approx(expected, abs=1e-5)


def test_two_ranks_work_together(
    finished: tuple[Path, CompletedProcess[str]], overrides: list[str]
) -> None:
    folder, _ = finished
    small = ["compare.objectives=[gpt]", "run.name=ranks"]
    results = run_programs(main, ["glm-dist", "compare", *overrides, *small], rank_environments(2))
    assert [result.returncode for result in results] == [0, 0], results[0].stderr
    other = json.loads((folder.parent / "ranks" / "table.json").read_text())
    alone = json.loads((folder / "table.json").read_text())
    (found,) = other["pretrained"]
    expected = alone["pretrained"][OBJECTIVES.index("gpt")]
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert found["words"]["nats"] == pytest.approx(expected["words"]["nats"], abs=1e-5)


@pytest.mark.slow
def test_processes_side_by_side_share_the_jobs(
    finished: tuple[Path, CompletedProcess[str]], overrides: list[str]
) -> None:
    folder, _ = finished
    command = [str(BIN / "python"), "-m", "glm_dist", "compare", *overrides, "run.name=both"]
    result = start([*command, "--jobs", "2"])
    assert result.returncode == 0, result.stderr
    found = json.loads((folder.parent / "both" / "table.json").read_text())
    alone = json.loads((folder / "table.json").read_text())
    assert found["cells"] == alone["cells"]
    assert set(attempts(folder.parent / "both").values()) == {1}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("compare.objectives=[]", id="nothing"),
        pytest.param("compare.objectives=[bert,random]", id="random"),
        pytest.param("compare.objectives=[bert,bert]", id="twice"),
        pytest.param("compare.seeds=[1,-1]", id="seed"),
        pytest.param("compare.objectives=[bart]", id="objective"),
        pytest.param("compare.tasks=[rte]", id="task"),
        pytest.param("compare.tasks=[a/x.yaml,b/x.yaml]", id="names"),
        pytest.param("checkpoint.interval=0", id="no checkpoints"),
        pytest.param("compare.last_words=nowhere.jsonl", id="words"),
        pytest.param('compare.finetune=["task.epoch=3"]', id="finetune"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    overrides: list[str], change: str, says: Says
) -> None:
    with pytest.raises(GlmDistError) as caught:
        plan([*overrides, "compare.objectives=[gpt]", "run.name=wrong", change])
    assert not (runs_of(overrides) / "wrong").exists()
    says(caught.value)
