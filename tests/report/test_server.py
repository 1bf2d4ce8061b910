"""The live report answers its own page and nobody else, and leaves run folders as they are."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glm_dist.errors import ConfigError
from glm_dist.report import live
from glm_dist.report.live import LiveReport
from glm_dist.report.run import Options
from glm_dist.report.server import ReportServer
from tests.messages import Says
from tests.report.recorded import record, started, two_attempts, write_lines

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "run", two_attempts())


@pytest.fixture
def server(run: Path) -> Iterator[ReportServer]:
    report = LiveReport([run], ["run"], Options(row=False))
    with ReportServer(report, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: ReportServer, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask for a path below the token, or for an absolute one."""
    target = path if path.startswith("/") else f"/{server.token}/{path}"
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, target, headers=headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def news(server: ReportServer, offset: int) -> dict[str, Any]:
    response, content = ask(server, f"news?offsets={offset}")
    assert response.status == 200
    (found,) = json.loads(content)["runs"]
    return dict(found)


def append(run: Path, *lines: dict[str, Any]) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def test_the_page_is_served_at_its_address(server: ReportServer) -> None:
    response, content = ask(server, "")
    assert (response.status, response.getheader("Content-Type")) == (
        200,
        "text/html; charset=utf-8",
    )
    assert b"connect-src 'self'" in content
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    head, nothing = ask(server, "", "HEAD")
    assert (head.status, nothing) == (200, b"")
    assert int(head.getheader("Content-Length") or 0) > 10_000


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"])
def test_every_method_that_could_write_is_refused(server: ReportServer, method: str) -> None:
    response, _ = ask(server, "", method)
    assert (response.status, response.getheader("Allow")) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/news?offsets=0", "/wrong-token/", "/wrong-token/news?offsets=0", "x", "news/"),
        *("../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "metrics.jsonl", "//etc/passwd"),
    ],
)
def test_nothing_else_is_served(server: ReportServer, path: str) -> None:
    response, content = ask(server, path)
    assert response.status == 404
    assert len(content) < 100


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example:80", "127.0.0.1:80@evil.example", "127.0.0.2", ""],
)
def test_a_name_that_leads_here_is_not_enough(server: ReportServer, host: str) -> None:
    response, _ = ask(server, "", Host=host)
    assert response.status == 403
    forwarded, _ = ask(server, "", Host="localhost:9999")
    assert forwarded.status == 200


@pytest.mark.parametrize("query", ["", "offsets=", "offsets=-1", "offsets=1,2", "offsets=%C2%B2"])
def test_questions_that_make_no_sense_are_refused(server: ReportServer, query: str) -> None:
    response, _ = ask(server, f"news?{query}")
    assert response.status == 400


def test_only_new_records_are_sent(
    server: ReportServer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(live, "SHARE_OF_TIME", 1e9)
    end = (run / "metrics.jsonl").stat().st_size
    assert news(server, end)["records"] == []
    append(run, record(2, 9, 120, 2.25), record(2, 10, 121, 2.5))
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 11, "train/')
    found = news(server, end)
    assert [(step, metrics["train/loss"]) for step, _, metrics in found["records"]] == [
        (9, 2.25),
        (10, 2.5),
    ]
    assert news(server, found["offset"])["records"] == []
    assert found["state"]["step"] == 10


def test_another_attempt_sends_the_whole_run(server: ReportServer, run: Path) -> None:
    end = (run / "metrics.jsonl").stat().st_size
    append(run, started(3, 2, 200), record(3, 3, 201, 1.5))
    whole = news(server, end)["run"]
    losses = next(table for table in whole["tables"] if "train/loss" in table["columns"])
    assert losses["steps"] == [1, 2, 3]
    assert whole["offset"] == (run / "metrics.jsonl").stat().st_size
    # So does an offset that is no line's beginning: the file is another one than before.
    assert "run" in news(server, 7)
    assert "run" in news(server, 10**9)


def test_a_port_in_use_is_refused(server: ReportServer, says: Says) -> None:
    with pytest.raises(ConfigError) as raised:
        ReportServer(server.report, port=server.server_port)
    assert raised.value.key == "--port"
    says(str(raised.value).replace(str(server.server_port), "<port>"))


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Times and contents of all files and folders."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def test_the_command_serves_until_interrupted_and_leaves_no_trace(run: Path) -> None:
    before = everything(run)
    command = [sys.executable, "-m", "glm_dist", "report", str(run), "--live", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)(/[\w-]{20,}/)$", url)
        assert found, url
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        for path in ("", "news?offsets=0"):
            connection.request("GET", found[2] + path)
            response = connection.getresponse()
            assert response.status == 200
            response.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert everything(run) == before


def test_it_listens_at_the_loopback_address_only(server: ReportServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
