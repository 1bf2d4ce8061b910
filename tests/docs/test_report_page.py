"""Every command of the page about reports does what the page says."""

import re
from pathlib import Path

import pytest

from glm_dist.cli import report
from glm_dist.cli.main import main
from glm_dist.report.server import DEFAULT_PORT, ReportServer
from tests.report.recorded import two_attempts, write_run
from tests.train.jobs import free_port

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "report.md"


def test_every_command_of_the_page_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("quickstart", "second"):
        write_run(tmp_path, name, two_attempts())
    monkeypatch.chdir(tmp_path)

    def interrupt(server: ReportServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ReportServer, "serve_forever", interrupt)
    monkeypatch.setattr(report, "DEFAULT_PORT", free_port())
    commands = re.findall(r"(?m)^\$ glm-dist (.+)$", PAGE.read_text(encoding="utf-8"))
    assert len(commands) == 3
    for command in commands:
        assert main(command.split()) == 0, command
    assert "http://127.0.0.1:" in capsys.readouterr().out
    assert f"at port {DEFAULT_PORT}" in PAGE.read_text(encoding="utf-8")
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "compared.html").is_file()


def test_the_sections_of_the_page_are_those_of_the_report() -> None:
    script = (ROOT / "glm_dist/report/assets/page.js").read_text(encoding="utf-8")
    drawn = re.findall(r'section\("\w+", "([^"]+)"', script)
    listed = re.findall(r"(?m)^\| ([A-Z][^|]*) \|", PAGE.read_text(encoding="utf-8"))
    assert sorted([*drawn, "Metrics"]) == sorted([*listed, "Notes"])
