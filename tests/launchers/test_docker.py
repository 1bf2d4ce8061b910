"""The image: its pins fit the package's bounds, and its entry point starts what was meant."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def _pins() -> dict[str, str]:
    lines = (ROOT / "docker/requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_pins_satisfy_the_bounds_and_leave_torch_and_numpy_to_the_base() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["data"]]
    requirements = {Requirement(line).name.lower(): Requirement(line) for line in wanted}
    pins = _pins()

    left_to_base = {"torch", "numpy"}
    assert not left_to_base & pins.keys()
    assert not requirements.keys() - pins.keys() - left_to_base
    for name, requirement in requirements.items():
        if name in pins:
            assert requirement.specifier.contains(pins[name]), f"{requirement} and {pins[name]}"


def test_everything_the_dockerfile_copies_is_in_the_build_context() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    kept = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    copied = {
        source
        for words in re.findall(r"(?m)^COPY (.*) \S+$", dockerfile)
        for source in words.split()
    }

    assert copied <= kept
    assert all((ROOT / source).exists() for source in copied)
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("words", "started"),
    [
        (["experiment=glm_base", "run.seed=1"], "python3 train.py experiment=glm_base run.seed=1"),
        (["torchrun", "train.py", "a=b"], "torchrun train.py a=b"),
        (["generate", "runs/x", "a = b"], "glm-dist generate runs/x a = b"),
        (["--help"], "glm-dist --help"),
        ([], "glm-dist --help"),
    ],
    ids=["overrides", "program", "command", "option", "nothing"],
)
def test_entry_point_starts_what_the_words_mean(
    words: list[str], started: str, tmp_path: Path
) -> None:
    for name in ("python3", "torchrun", "glm-dist"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$(basename "$0")" "$@"\n')
        (tmp_path / name).chmod(0o755)
    bash = shutil.which("bash")
    assert bash

    done = subprocess.run(
        [bash, str(ROOT / "docker/entrypoint.sh"), *words],
        env={"PATH": f"{tmp_path}:{os.defpath}"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == started + "\n"


# Dies of TERM at once, as deepspeed does; its child takes notice, saves and ends with 75.
LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
sys.exit(child.wait())
"""
RANK = """
import os, sys, time
parent = os.getppid()
print("runs", flush=True)
while os.getppid() == parent: time.sleep(0.02)
time.sleep(0.3)
print("saved", flush=True)
sys.exit(75)
"""


def _contained(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "docker/init.py"), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_container_lives_until_ranks_without_a_launcher_have_saved() -> None:
    container = _contained(sys.executable, "-c", LAUNCHER, RANK)
    assert container.stdout is not None
    assert container.stdout.readline() == "runs\n"

    container.send_signal(signal.SIGTERM)

    out, _ = container.communicate(timeout=30)
    assert (container.returncode, out) == (75, "saved\n")


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("sleep 5 & exit 4", 4), ("kill $$", 143)]
)
def test_the_container_ends_with_its_command(script: str, status: int) -> None:
    container = _contained("bash", "-c", f"exec >&- 2>&-; {script}")
    assert container.wait(timeout=30) == status


def test_a_command_that_does_not_exist_is_one_line() -> None:
    container = _contained("no-such-program")
    _, err = container.communicate(timeout=30)
    assert (container.returncode, err) == (127, "no-such-program: No such file or directory\n")
