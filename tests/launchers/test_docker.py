"""The image: its pins fit the package's bounds, and its entry point starts what was meant."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import glm_dist

ROOT = Path(__file__).resolve().parents[2]


def _pins() -> dict[str, str]:
    """Version of each package, with the mark behind it."""
    lines = (ROOT / "docker/requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_pins_satisfy_the_bounds_and_leave_torch_and_numpy_to_the_base() -> None:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = content["project"]
    extras = [
        line for name in ("data", "tensorboard") for line in project["optional-dependencies"][name]
    ]
    wanted = [*content["build-system"]["requires"], *project["dependencies"], *extras]
    pins = _pins()
    for requirement in map(Requirement, wanted):
        version, _, mark = pins[requirement.name.lower()].partition("  # ")
        assert requirement.specifier.contains(version), f"{requirement} and {version}"
        assert (mark == "unless the base has torch") == (requirement.name in ("torch", "numpy"))
        assert (mark == "builds glm_dist") == (requirement.name == "hatchling")
    marks = {pin.partition("  # ")[2] for pin in pins.values()}
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    assert all(f"'# {mark}" in dockerfile for mark in marks - {""})


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
        if not words.startswith("--from=")
        for source in words.split()
        if not source.startswith("--")
    }

    assert copied <= kept
    assert all((ROOT / source).exists() for source in copied)
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_every_service_has_the_folders_a_user_and_arguments_that_the_image_takes() -> None:
    content = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    taken = set(re.findall(r"(?m)^ARG (\w+)", (ROOT / "docker/Dockerfile").read_text()))
    services = content["services"]
    assert services.keys() == {"train", "shell", "train-gpu", "shell-gpu"}
    for name, service in services.items():
        build, on_gpu = service["build"], name.endswith("-gpu")
        mounts = [text.rpartition(":")[2] for text in service["volumes"]]
        assert mounts == ["/workspace/glm_dist/data", "/workspace/glm_dist/runs"]
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).is_file()
        assert build["args"].keys() <= taken
        assert service["user"] == "${GLM_USER:-1000:1000}"
        assert service["shm_size"] == "8gb"
        assert service.get("profiles", []) == (["gpu"] if on_gpu else [])
        assert ("deploy" in service, "BASE" in build["args"]) == (on_gpu, not on_gpu)
        assert service.get("tty", False) == name.startswith("shell")


def test_the_page_names_services_that_there_are() -> None:
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    page = (ROOT / "docs/running/docker.md").read_text()
    named = re.findall(r"compose\.yaml (?:build|run --rm) ([\w-]+)", page)
    assert set(named) == services.keys()


def test_make_builds_either_flavor_with_arguments_that_the_image_takes() -> None:
    taken = set(re.findall(r"(?m)^ARG (\w+)", (ROOT / "docker/Dockerfile").read_text()))
    for flavor, tag, base in (("", "glm-dist", set()), ("cpu", "glm-dist:cpu", {"BASE"})):
        done = subprocess.run(
            ["make", "-n", "docker", f"FLAVOR={flavor}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        words = shlex.split(done.stdout.replace("\\\n", " "))
        given = {word.partition("=")[0] for word in words if re.match("[A-Z]+=", word)}
        assert given == {"COMMIT", "VERSION"} | base
        assert given <= taken
        assert f"VERSION={glm_dist.__version__}" in words
        assert words[-3:] == ["-t", tag, "."]


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
