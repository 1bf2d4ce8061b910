"""The page is one sound HTML file that holds the records, and nothing that a run could slip in."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from glm_dist.cli.main import main
from glm_dist.report.page import SCRIPTS, STYLES, unique_labels
from tests.report.recorded import record, started, two_attempts, write_run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Elements of a page, and the content of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.contents:
            self.contents[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem in self.contents:
            self.contents[self.cdata_elem][-1] += data

    @property
    def data(self) -> Any:
        """Data of the runs."""
        return json.loads(self.contents["script"][0])

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Two runs, one of which is full of markup."""
    folder = tmp_path_factory.mktemp("report")
    plain = write_run(folder, "plain", two_attempts())
    lines = [started(1, 0, 0), record(1, 1, 1, 2.0, **{f"valid/task/{EVIL}": 0.5})]
    lines.append({"step": 1, "event": "stopped", "reason": EVIL, "attempt": 1, "time": 1.0})
    evil = write_run(folder, "evil", lines, "model.hidden_size=64")
    config = evil / "config.yaml"
    saved = config.read_text()
    config.write_text(saved.replace(f"runs: {folder}/runs", f"runs: '{EVIL}'"))
    assert config.read_text() != saved
    (evil / "results.json").write_text(json.dumps({"task": EVIL}))
    output = folder / "page.html"
    assert main(["report", str(plain), str(evil), "--output", str(output)]) == 0
    return Page(output.read_text(encoding="utf-8"))


def test_embedded_data_are_the_records(page: Page) -> None:
    plain, _ = page.data["runs"]
    found = {
        (step, name): value
        for table in plain["tables"]
        for name, values in table["columns"].items()
        for step, value in zip(table["steps"], values, strict=True)
    }
    lines = two_attempts()
    kept = [*lines[1:6], *lines[-4:]]  # without the events, and steps 5 and 6 of the first attempt
    names = ("train/loss", "train/grad_norm", "valid/loss_span")
    recorded = {(line["step"], name): line[name] for line in kept for name in names if name in line}
    assert found == pytest.approx(recorded, rel=1e-7)


def test_text_of_a_run_is_never_markup(page: Page) -> None:
    _, evil = page.data["runs"]
    assert evil["config"]["paths.runs"] == EVIL
    assert evil["results"]["task"] == EVIL
    assert any(event["details"].get("reason") == EVIL for event in evil["events"])
    assert any(f"valid/task/{EVIL}" in table["columns"] for table in evil["tables"])
    assert "<" not in page.contents["script"][0]
    # The page has the elements that its template has, whatever a run contains.
    assert len(page.attributes("script")) == 1 + len(SCRIPTS)
    assert len(page.attributes("style")) == len(STYLES)
    assert not page.attributes("img")
    assert not any(name.startswith("on") for _, found in page.elements for name in found)


def test_scripts_put_no_text_into_markup(page: Page) -> None:
    ours = "\n".join(page.contents["script"][2:])
    assert "createElement" in ours
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", ours)


def test_the_page_loads_nothing_and_runs_only_its_own_scripts(page: Page) -> None:
    assert not [found for _, found in page.elements if "src" in found]
    assert {found.get("href") for found in page.attributes("link")} == {"data:,"}
    assert "url(" not in "".join(page.contents["style"])
    (policy,) = [
        found["content"] or ""
        for found in page.attributes("meta")
        if found.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    for kind, contents in (("script", page.contents["script"][1:]), ("style", None)):
        hashes = [
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in contents or page.contents["style"]
        ]
        assert rules[f"{kind}-src"].split() == hashes


def test_differences_of_configurations_are_in_the_data(page: Page) -> None:
    plain, evil = (run["config"] for run in page.data["runs"])
    differing = {key for key in plain if plain[key] != evil[key]}
    assert {"run.name", "model.hidden_size"} <= differing
    assert differing <= {"run.name", "model.hidden_size", "model.ffn_hidden_size", "paths.runs"}


def test_labels_are_as_short_as_they_can_be() -> None:
    runs = [Path("/a/runs/x"), Path("/b/runs/x"), Path("/a/runs/y")]
    assert unique_labels(runs) == ["a/runs/x", "b/runs/x", "y"]
