"""The page on planning shows what its commands print, and errors that follow from its figures."""

import re
import shlex
from pathlib import Path

import pytest

from glm_dist.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"(?ms)^```\n(glm-dist plan [^\n]*)\n```\n\n```\n(.*?)^```$", PAGE)


@pytest.mark.parametrize(("command", "expected"), SHOWN, ids=["10B", "130B"])
def test_shown_output_is_that_of_the_command(
    command: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(shlex.split(command)[1:]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line] == expected.splitlines()


def test_errors_follow_from_the_times() -> None:
    rows = re.findall(r"(?m)\| ([\d.]+) \| ([\d.]+) \| (-?\d+) % \|$", PAGE)
    assert len(rows) == 7
    for measured, found, error in rows:
        assert float(found) / float(measured) - 1 == pytest.approx(int(error) / 100, abs=0.006)
