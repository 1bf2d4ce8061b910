"""A web server of one page, for its user alone; it can only be read.

It answers GET and HEAD at two addresses below a random token: the page, and what is new as JSON.
Other users of the machine do not know the token. A page of another site can neither read it nor
reach the server by a name that leads to this machine, because the Host header must be the loopback
address.
"""

import errno
import hmac
import re
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from glm_dist.errors import ConfigError
from glm_dist.report.live import LiveReport
from glm_dist.report.page import as_json

HOST = "127.0.0.1"
DEFAULT_PORT = 8765
REQUEST_SECONDS = 20.0
"""Longest time in which a client sends its request."""

OWN_NAME = re.compile(rf"({re.escape(HOST)}|localhost)(:\d+)?")
"""Host headers of requests that were meant for this machine. A forwarded port may have another
number."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class ReportServer(ThreadingHTTPServer):
    """Serves one report until it is closed."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, report: LiveReport, *, port: int, host: str = HOST) -> None:
        """Open the port.

        Args:
            report: The page and its answers.
            port: TCP port; 0: any free one.
            host: Address to listen at.

        Raises:
            ConfigError: The port is in use, or may not be opened.
        """
        self.report = report
        self.token = secrets.token_urlsafe(16)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise _no_port(port, error) from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: ReportServer
    server_version = "glm-dist"
    sys_version = ""
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        """Answer with the page or with what is new."""
        if not OWN_NAME.fullmatch(self.headers.get("Host", "")):
            self._answer(HTTPStatus.FORBIDDEN, "This server answers to its own address only.")
            return
        asked = urlsplit(self.path)
        _, token, *rest = [*asked.path.split("/", 2), "", ""][:3]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._answer(HTTPStatus.NOT_FOUND, "Open the address that glm-dist report printed.")
        elif rest == [""] and asked.path.endswith("/"):
            self._answer(HTTPStatus.OK, self.server.report.page(), "text/html")
        elif rest == ["news"]:
            self._answer_news(asked.query)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "There is nothing here.")

    do_HEAD = do_GET  # noqa: N815

    def __getattr__(self, name: str) -> object:
        """Refuse every other method, such as POST."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet: the terminal shows the address."""

    def _answer_news(self, query: str) -> None:
        asked = parse_qs(query, max_num_fields=4).get("offsets", [""])[0].split(",")
        is_sound = all(text.isascii() and text.isdigit() and len(text) <= 15 for text in asked)
        if not is_sound or len(asked) != self.server.report.num_runs:
            self._answer(HTTPStatus.BAD_REQUEST, "offsets must be one number for each run.")
            return
        news = self.server.report.news([int(text) for text in asked])
        self._answer(HTTPStatus.OK, as_json(news), "application/json")

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "This report can only be read.")

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _no_port(port: int, error: OSError | OverflowError) -> ConfigError:
    is_taken = getattr(error, "errno", None) == errno.EADDRINUSE
    problem = "is in use" if is_taken else f"cannot be opened ({getattr(error, 'strerror', error)})"
    return ConfigError(
        f"Port {port} {problem}.\n  Choose another one, or any free one with --port 0.",
        key="--port",
        value=port,
        fix="--port 0",
    )
