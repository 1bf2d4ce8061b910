"""Every command of the pages about generation and evaluation does what the page says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.jobs import make_files, with_python

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("generation.md", "evaluation.md")

# All commands in one process: starting one takes longer than most of them.
DRIVER = """
import io, shlex, sys
from glm_dist.cli.main import main
for command in sys.stdin.read().splitlines():
    text, _, piped = command.rpartition(" | ")
    words = shlex.split(piped)
    stdin = shlex.split(text)[1].encode() if text else b""
    if "<" in words:
        place = words.index("<")
        stdin, words = open(words[place + 1], "rb").read(), words[:place]
    assert words[0] == "glm-dist", command
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    status = main(words[1:])
    assert status == 0, f"{command}: status {status}"
"""


def commands(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"(?m)^\$ (.+)$", text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run named quickstart, and the files that the pages name."""
    folder = tmp_path_factory.mktemp("pages")
    overrides = [*make_files(folder), "run.name=quickstart", "parallel=single", "run.steps=1"]
    done = with_python(overrides)
    assert done.returncode == 0, done.stderr
    (folder / "examples").symlink_to(ROOT / "examples")
    for name, record in {
        "my_choices": {"inputs": "w10 w11", "choices": ["w12", "w13 w14"], "label": 0},
        "my_answers": {"inputs": "w10 [MASK] w11", "targets": ["w12"]},
        "my_texts": {"text": "w10 w11 w12 w13"},
    }.items():
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(record)}\n" * 12)
    return folder


def test_every_command_of_the_pages_succeeds(folder: Path) -> None:
    of_pages = [commands(page) for page in PAGES]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input="\n".join(command for page in of_pages for command in page),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert min(map(len, of_pages)) > 3
