"""The report in a real browser: it draws, zooms, reads out and refreshes, without an error.

Needs Chromium and the extra `browser`: playwright, whose own browsers are not used.
"""

import json
import math
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glm_dist.cli.main import main
from glm_dist.report.live import LiveReport
from glm_dist.report.run import Options
from glm_dist.report.server import ReportServer
from tests.report.recorded import record, started, two_attempts, write_lines, write_run

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

MANY = 100_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started_playwright:
        browser = started_playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


class Opened:
    """A page, with everything that went wrong on it and everything that it asked for."""

    def __init__(self, browser: Any, url: str, *, width: int = 1280, scheme: str = "light") -> None:
        viewport = {"width": width, "height": 900}
        self.page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector(".uplot canvas")

    def all_charts(self) -> int:
        """Scroll through the page and count the charts that are drawn."""
        height = self.page.evaluate("document.documentElement.scrollHeight")
        for y in range(0, height, 400):
            self.page.evaluate(f"scrollTo(0, {y})")
            self.page.wait_for_timeout(50)
        return int(self.page.locator(".uplot").count())

    def range(self) -> Any:
        return self.page.evaluate("Charts.shared.range")


def in_file(folder: Path, *runs: Path, more: tuple[str, ...] = ()) -> str:
    output = folder / "page.html"
    assert main(["report", *map(str, runs), "--output", str(output), *more]) == 0
    return output.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_every_chart_is_drawn_and_nothing_is_wider_than_the_window(
    browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    evil = "<img src=x onerror=alert(1)>"
    lines = [*two_attempts(), record(2, 9, 120, 3.0, **{f"valid/task/{evil}": 0.5})]
    runs = [write_run(tmp_path, "first", lines), write_run(tmp_path, "second", two_attempts())]
    opened = Opened(browser, in_file(tmp_path, *runs), width=width, scheme=scheme)
    # Loss, validation loss, gradient norm and the benchmark; `write_run` has no speeds.
    assert opened.all_charts() == 4
    assert opened.page.get_by_text(evil).count() > 0
    assert opened.page.locator("img").count() == 0
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = [int(level) for level in ground.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (sum(levels) > 600) == (scheme == "light")
    assert opened.errors == []
    assert len(opened.asked) == 1  # the page itself


def test_text_is_legible(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", two_attempts())
    for scheme in ("light", "dark"):
        opened = Opened(browser, in_file(tmp_path, run), scheme=scheme)
        colors = opened.page.evaluate(
            """() => {
              const style = getComputedStyle(document.documentElement);
              const pairs = [["ink", "surface"], ["muted", "surface"], ["muted", "ground"],
                ["accent", "ground"], ["good", "good-ground"], ["warn", "warn-ground"],
                ["bad", "bad-ground"], ["ink", "mark"], ["surface", "accent"]];
              return pairs.map((pair) => pair.map((name) => style.getPropertyValue(`--${name}`)));
            }"""
        )
        for front, back in colors:
            assert contrast(front.strip(), back.strip()) >= 4.5, (scheme, front, back)


def contrast(one: str, other: str) -> float:
    """Ratio of the luminances of two colours, as WCAG 2 defines it."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_charts_are_zoomed_and_read_with_mouse_and_keyboard(browser: Any, tmp_path: Path) -> None:
    lines = [started(1, 0, 0), *(record(1, step, step, 1000.0 - step) for step in range(1, 501))]
    opened = Opened(browser, in_file(tmp_path, write_run(tmp_path, "run", lines)))
    page, chart = opened.page, opened.page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    box = chart.locator(".u-over").bounding_box()
    middle = box["y"] + box["height"] / 2

    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    legend = chart.locator(".legend").inner_text()
    # Steps 1 to 500 from edge to edge: the middle is step 250, whose loss is 750.
    assert "at step 25" in legend
    assert "75" in legend

    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, middle)
    page.mouse.up()
    assert opened.range() == pytest.approx([250.5, 375.25], abs=3)
    page.mouse.dblclick(box["x"] + 20, middle)
    assert opened.range() is None

    chart.focus()
    page.keyboard.press("+")
    first, last = opened.range()
    assert last - first == pytest.approx(0.7 * 499)
    page.keyboard.press("0")
    assert opened.range() is None

    page.get_by_role("radio", name="Tokens").check()
    page.wait_for_timeout(200)
    tokens = page.evaluate("[...Charts.shared.all][0].plot.scales.x.max")
    assert tokens == 500 * 4 * 96  # rows of a step, tokens of a row
    chart.get_by_role("button", name="log").click()
    assert page.evaluate("[...Charts.shared.all][0].plot.scales.y.distr") == 3
    assert opened.errors == []


def test_a_live_page_follows_the_run(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm_dist.report.live.REFRESH_SECONDS", 0.2)
    run = write_lines(tmp_path / "run", two_attempts())
    with ReportServer(LiveReport([run], ["run"], Options(row=False)), port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            opened = Opened(browser, server.url)
            legend = opened.page.locator(".legend").first
            assert "3.2" in legend.inner_text()
            append(run, record(2, 9, 120, 2.125), {**record(2, 9, 120, 1.0), "event": "spike"})
            playwright.expect(legend).to_contain_text("2.125")
            assert "step 9" in opened.page.locator(".progress").inner_text()
            append(run, started(3, 4, 200), record(3, 5, 201, 1.75, **{"train/new": 1.0}))
            playwright.expect(legend).to_contain_text("1.75")
            steps = opened.page.evaluate("[...Charts.shared.all][0].lines()[0].run.tables[0].steps")
            assert steps == [1, 2, 3, 4, 5]
            playwright.expect(
                opened.page.get_by_text("Other training metrics").first
            ).to_be_attached()
            assert opened.errors == []
        finally:
            server.shutdown()
            thread.join()
        server.server_close()
        playwright.expect(opened.page.locator(".live.lost")).to_be_visible()


def append(run: Path, *lines: dict[str, Any]) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize("more", [(), ("--points", "0")], ids=["thinned", "all"])
def test_100_000_records_stay_fluid(browser: Any, tmp_path: Path, more: tuple[str, ...]) -> None:
    rng = random.Random(0)
    names = [f"train/loss_{name}" for name in ("a", "b", "c")]
    names += ["speed/tokens_per_second", "speed/mfu", "speed/wait_share_data", "memory/peak_gib"]
    lines = [started(1, 0, 0)]
    for step in range(1, MANY + 1):
        loss = 2 + math.exp(-step / 9000) + rng.gauss(0, 0.1) + 5 * (step == 54_321)
        lines.append(record(1, step, step, loss, **{name: rng.random() for name in names}))
    run = write_lines(tmp_path / "run", lines)
    opened = Opened(browser, in_file(tmp_path, run, more=more))
    # Milliseconds; other tests may run on the same cores.
    assert opened.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 15e3
    milliseconds = opened.page.evaluate(
        """async () => {
          const found = [];
          const charts = [...Charts.shared.all].filter((chart) => chart.isNear);
          for (let i = 0; i < 20; i++) {
            const begin = performance.now();
            Charts.shared.range = [1000 * i, 90000 - 1000 * i];
            for (const chart of charts) chart.refresh();
            await null; // uPlot draws in a microtask
            found.push(performance.now() - begin);
            await new Promise(requestAnimationFrame);
          }
          return found.sort((a, b) => a - b)[10];
        }"""
    )
    assert milliseconds < 100  # of all charts in sight; 3 to 20 alone
    # However many lines and records there are, two points are drawn for each column of pixels.
    drawn = opened.page.evaluate(
        "[...Charts.shared.all].filter((chart) => chart.plot).map((c) => c.plot.data[0].length)"
    )
    assert max(drawn) < 2 * 1280
    # Nothing that is thinned out may hide a spike.
    loss = opened.page.evaluate(
        "Charts.zoomTo(null), Math.max(...[...Charts.shared.all][0].plot.data[1].filter(Boolean))"
    )
    spike = lines[54_321]["train/loss"]
    assert loss == pytest.approx(spike, rel=1e-6)
    assert opened.errors == []
