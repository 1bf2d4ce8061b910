"""Messages that users read, in one file: ``tests/messages.txt``, which ``make messages`` rewrites.

A test asserts what a program may rely on (class, key, value, fix) and leaves the sentence to the
file, so that a change of wording is one command and one diff to read.
"""

import difflib
import re
import socket
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("messages.txt")
ROOT = FILE.parents[1]

HEAD = "# What users read, as the tests meet it. `make messages` rewrites this file.\n"


class Messages:
    """The file, and what the tests of this session add to it."""

    def __init__(self, *, rewrites: bool) -> None:
        self.rewrites = rewrites
        self.stored = parse(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        self.seen: dict[str, str] = {}

    def check(self, name: str, text: str) -> None:
        """Compare with the stored text, or note it."""
        self.seen[name] = text
        if self.rewrites:
            return
        stored = self.stored.get(name)
        assert stored is not None, f"{name} is not in {FILE.name}; `make messages` adds:\n{text}"
        changed = "\n".join(difflib.ndiff(stored.splitlines(), text.splitlines()))
        assert text == stored, f"another message than in {FILE.name} (`make messages`):\n{changed}"

    def write(self, collected: set[str], *, is_whole: bool) -> None:
        """Write the file; names of collected files that nobody used any more go."""
        files = {name.partition("::")[0] for name in collected}
        kept = {
            name: text
            for name, text in self.stored.items()
            if not (is_whole and name.partition("::")[0] in files)
        }
        FILE.write_text(render(kept | self.seen), encoding="utf-8")


def render(messages: dict[str, str]) -> str:
    """Turn names and texts into the file's content."""
    parts = [HEAD]
    for name, text in sorted(messages.items()):
        body = "".join(f"    {line}".rstrip() + "\n" for line in text.splitlines())
        parts.append(f"\n{name}\n{body}")
    return "".join(parts)


def parse(content: str) -> dict[str, str]:
    """Read the file's content back."""
    messages: dict[str, list[str]] = {}
    name = ""
    for line in content.splitlines():
        if line.startswith("    "):
            messages[name].append(line[4:])
        elif line and not line.startswith("#"):
            name = line
            messages[name] = []
        elif not line and name and messages[name]:
            messages[name].append("")
    return {name: "\n".join(lines).rstrip("\n") for name, lines in messages.items()}


class Says:
    """Value of the fixture ``says``: called with an error or a string, once or more often."""

    def __init__(self, messages: Messages, node: str, roots: dict[str, str]) -> None:
        self._messages = messages
        self._node = node
        self._roots = roots
        self._calls = 0

    def __call__(self, said: BaseException | str) -> None:
        """Check a message; several of a test are numbered."""
        self._calls += 1
        text = said if isinstance(said, str) else f"{type(said).__name__}: {said}"
        name = self._node if self._calls == 1 else f"{self._node} #{self._calls}"
        self._messages.check(name, normalised(text.rstrip("\n"), self._roots))


def normalised(text: str, roots: dict[str, str]) -> str:
    """Replace what differs from machine to machine."""
    for root, word in sorted(roots.items(), key=lambda item: -len(item[0])):
        text = text.replace(root, word)
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "<host>", text)
    return re.sub(r"process \d+", "process <pid>", text)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that rewrites the file."""
    parser.addoption("--rewrite-messages", action="store_true", help=f"rewrite {FILE.name}")


def pytest_configure(config: pytest.Config) -> None:
    """Read the file once."""
    rewrites = config.getoption("--rewrite-messages")
    config.stash[KEY] = Messages(rewrites=rewrites)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the file if asked to."""
    messages = session.config.stash[KEY]
    if messages.rewrites:
        chosen = session.config.option.keyword or any("::" in a for a in session.config.args)
        collected = {item.nodeid for item in session.items}
        messages.write(collected, is_whole=not chosen)


KEY = pytest.StashKey[Messages]()


@pytest.fixture
def says(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Says:
    """Check a message against the file of messages."""
    roots = {str(tmp_path_factory.getbasetemp()): "<base>", str(ROOT): "<root>"}
    if "tmp_path" in request.fixturenames:
        roots[str(request.getfixturevalue("tmp_path"))] = "<tmp>"
    return Says(request.config.stash[KEY], request.node.nodeid, roots)
