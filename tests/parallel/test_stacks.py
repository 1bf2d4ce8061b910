"""The watchdog tells a thread that waits for others from one that is busy."""

import ast
import sys
from pathlib import Path
from types import FrameType

import pytest

import glm_dist
from glm_dist.parallel.exchange import wait_for, wait_for_device
from glm_dist.parallel.stacks import ACTIVITIES, position

PACKAGE = Path(glm_dist.__file__).parent


class Waited:
    """Stands for an exchange or an event; keeps the frame that the C++ call leaves innermost."""

    frame: FrameType | None = None

    def wait(self) -> None:
        self.frame = sys._getframe().f_back

    synchronize = wait


@pytest.mark.parametrize("function", [wait_for, wait_for_device])
def test_a_thread_in_a_wait_of_ours_waits(function) -> None:
    waited = Waited()
    function(waited)
    found = position(waited.frame)
    assert found.waits
    assert found.at.startswith(f"{function.__name__} (glm_dist/parallel/exchange.py:")


def test_any_other_frame_is_busy() -> None:
    found = position(sys._getframe())
    assert not found.waits
    assert found.at.startswith("test_any_other_frame_is_busy (parallel/test_stacks.py:")


@pytest.mark.parametrize("folder", ["model", "optim"])
def test_a_step_waits_only_where_the_watchdog_knows(folder: str) -> None:
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                waits = node.func.attr in {"wait", "synchronize"}
                assert not waits, f"{path}:{node.lineno}: use glm_dist.parallel.exchange"


@pytest.mark.parametrize(("file", "function"), ACTIVITIES, ids=lambda part: part)
def test_a_named_activity_is_a_function(file: str, function: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text())
    assert function in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
