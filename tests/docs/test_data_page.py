"""Every command of docs/data.md does what the page says, from text files to a trained step."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "data.md"
COMMANDS = re.findall(r"(?m)^\$ (.+)$", PAGE.read_text(encoding="utf-8"))


def write_text(folder: Path) -> None:
    """About 2 MB of made-up sentences in two formats."""
    rng = np.random.default_rng(0)
    letters = list("etaoinshrdlu")
    words = ["".join(rng.choice(letters, int(rng.integers(2, 9)))) for _ in range(12_000)]
    folder.mkdir()
    for name, count in (("a.jsonl", 900), ("b.txt", 300)):
        with (folder / name).open("w") as stream:
            for _ in range(count):
                sentences = rng.integers(5, 40)
                text = " ".join(
                    " ".join(rng.choice(words, int(rng.integers(4, 15)))) + "."
                    for _ in range(sentences)
                )
                stream.write(f'{{"text": "{text}"}}\n' if name.endswith("jsonl") else f"{text}\n")


def argument_list(command: str) -> list[str]:
    """The command with this interpreter and this checkout's package."""
    program, *rest = shlex.split(command)
    if program == "glm-dist":
        return [
            sys.executable,
            "-c",
            "from glm_dist.cli.main import main; raise SystemExit(main())",
            *rest,
        ]
    assert program == "python"
    return [sys.executable, str(ROOT / rest[0]), *rest[1:]]


@pytest.mark.slow
def test_every_command_of_the_page_succeeds_in_order(tmp_path: Path) -> None:
    write_text(tmp_path / "my_text")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLM_DATA": str(tmp_path / "data"),
        "GLM_RUNS": str(tmp_path / "runs"),
    }
    for command in COMMANDS:
        done = subprocess.run(
            argument_list(command),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    assert (tmp_path / "data" / "mine" / "text.idx").exists()
    assert list((tmp_path / "runs" / "mine" / "checkpoints").glob("step_*"))
