"""Every command of docs/conversion.md does what the page says, with a small model in its place."""

import re
import shlex
from pathlib import Path

from tests.convert.conversions import HEADS_TYPED, module, same
from tests.convert.official_files import make_state, write_parts, write_vocabulary
from tests.train.jobs import glm_dist_command

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conversion.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = re.findall(r"(?m)^\$ glm-dist (.+)$", TEXT)
ACCOUNT = re.findall(r"(?m)^(\w+) +\S", re.findall(r"(?s)```\n(source .*?)```", TEXT)[0])
PLACES = ("glm-large", "runs/", "official", "one_file", "hub", "vocab.txt")


def typed(command: str, folder: Path) -> list[str]:
    """The command with paths below a folder, and the heads of the small model."""
    arguments = []
    for argument in shlex.split(command):
        key, equals, value = argument.rpartition("=")
        is_option = bool(arguments) and arguments[-1] == "--to"
        if value.startswith(PLACES) and not is_option:
            value = str(folder / value)
        arguments.append(f"{key}{equals}{value}")
    heads = [each for each in arguments if not each.startswith("model.num_attention_heads")]
    is_import = arguments[0] == "convert" and not arguments[1].endswith(("runs/large", "hub"))
    return [*heads, HEADS_TYPED] if is_import else arguments


def test_every_command_of_the_page_succeeds_in_order(tmp_path: Path) -> None:
    state = make_state()
    write_parts(tmp_path / "glm-large", state)
    write_vocabulary(tmp_path)

    for command in COMMANDS:
        done = glm_dist_command(*typed(command, tmp_path))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("convert"):
            titles = re.findall(r"(?m)^(\w+)  ", done.stdout)
            assert titles == ACCOUNT, done.stdout

    (file,) = (tmp_path / "one_file").rglob("mp_rank_*.pt")
    assert same(module(file), state)
