"""Every command that a document shows is one that the programs take.

Pages whose commands can run as they stand are run by tests of their own; here each command of each
document is parsed, its configuration composed, and its scripts and targets looked for.
"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from glm_dist.cli import main as program
from glm_dist.config.load import dump_config, load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])
OF_A_USER = "my_run"
"""Stands for a user's own experiment."""

BLOCK = re.compile(r"(?ms)^ *```(\w*)\n(.*?)^ *```$")
COMMAND = re.compile(r"(?:\w+=\S* )*(glm-dist|deepspeed|torchrun|sbatch|srun|bash|make|python) ")


def commands() -> list[Any]:
    """Words of each command, without what a shell takes away, by page."""
    found = []
    for page in PAGES:
        for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language not in ("", "bash", "sh"):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                if COMMAND.match(line.strip() + " "):
                    words = shlex.split(re.sub(r"\s[<>|] .*", "", line), comments=True)
                    name = f"{page.stem}: {' '.join(words)[:60]}"
                    found.append(pytest.param(words, id=name))
    return found


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """What paths=cluster demands."""
    monkeypatch.setenv("GLM_DATA", "/data")
    monkeypatch.setenv("GLM_RUNS", "/runs")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to finetune."""
    run = tmp_path_factory.mktemp("pretrained")
    (run / "config.yaml").write_text(dump_config(load_config(["experiment=glm_large"])))
    return run


def compose(overrides: list[str], pretrained: Path) -> None:
    """Compose what a launcher would hand to ``train.py``."""
    for number, override in enumerate(overrides):
        if override.startswith("run.init_from="):
            overrides[number] = f"run.init_from={pretrained}"
        if override == f"experiment={OF_A_USER}":
            overrides[number] = "experiment=tiny"
    load_config(overrides)


@pytest.mark.parametrize("words", commands())
def test_documented_command_is_taken(
    words: list[str], monkeypatch: pytest.MonkeyPatch, pretrained: Path
) -> None:
    overrides = [word for word in words if re.match(r"[~+]?[a-z_.]+=", word)]
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if "glm_dist" in words:  # of torchrun -m
        words = ["glm-dist", *words[words.index("glm_dist") + 1 :]]
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif words[0] == "glm-dist":
        module = program.COMMANDS[words[1]].module
        monkeypatch.setattr(program._module(module), "run", lambda _: 0)
        monkeypatch.setattr(program, "LISTENING", ())  # nothing runs that a signal should stop
        assert program.run_command(words[1], words[2:], prog=words[1]) == 0
    elif "train.py" in " ".join(words):
        compose(overrides, pretrained)
    elif script := next((word for word in words if word.endswith(".sh")), None):
        assert (ROOT / script).is_file()
        compose([f"experiment={Path(script).stem}", *overrides], pretrained)
    else:
        assert words[:2] == ["python", "-m"]
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
