"""The files and commands of docs/finetuning.md, written and run as the page has them."""

import io
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from glm_dist.cli.main import main
from glm_dist.config.load import config_groups, default_config_dir
from tests.ranks import run_programs
from tests.tasks.letters import write_letters
from tests.train.jobs import clean_environment, make_files, with_python

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"(?s)```{language}\n(.*?)```", PAGE)
    assert found is not None, language
    return found[1]


def commands() -> list[str]:
    return re.findall(r"(?m)^\$ (.+)$", PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, and a run named quickstart."""
    folder = tmp_path_factory.mktemp("page")
    letters = f"tokenizer.path={write_letters(folder)}"
    done = with_python(
        [*make_files(folder), letters, "run.name=quickstart", "parallel=single", "run.steps=1"]
    )
    assert done.returncode == 0, done.stderr
    (folder / "my_task.yaml").write_text(block("yaml"))
    for name, times in (("train", 6), ("valid", 2)):
        (folder / f"{name}.jsonl").write_text(block("json") * times)
    return folder


def in_folder() -> int:
    """Run ``glm-dist`` in the folder of the page with the text that is piped into it."""
    os.chdir(os.environ["PAGE_FOLDER"])
    sys.stdin = io.TextIOWrapper(io.BytesIO(os.environ["PAGE_INPUT"].encode()))
    return main()


def test_own_task_works_as_the_page_says(folder: Path) -> None:
    output = []
    for command in commands():
        text, _, piped = command.rpartition(" | ")
        words = shlex.split(piped)
        assert words[0] == "glm-dist"
        piped_in = f"{shlex.split(text)[1]}\n" if text else ""
        environment = clean_environment(PAGE_FOLDER=str(folder), PAGE_INPUT=piped_in)
        (done,) = run_programs(in_folder, words, [environment])
        assert done.returncode == 0, f"{command}: {done.stderr}"
        output.append(done.stdout)
    checked, _, own, zero_shot, answered = output
    assert "12 train, 4 valid" in checked
    assert "accuracy" in own
    assert "accuracy" in zero_shot
    assert json.loads(answered)["prediction"] in ("positive", "negative")
    results = json.loads((folder / "runs" / "reviews" / "results.json").read_text())
    assert set(results["valid"]["metrics"]) == {"accuracy", "macro_f1"}


def test_page_lists_every_official_task() -> None:
    tasks = set(config_groups(default_config_dir())["task"])
    variants = {"none", "blanks", "customization", "cnn_dm_original", "wsc_plain", "wsc_classifier"}
    listed = set(re.findall(r"\w+", PAGE.partition("## Official tasks")[2]))
    assert tasks - variants <= listed
