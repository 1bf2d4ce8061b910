"""The messages that docs/debugging.md explains are those that the code says."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")


def literals() -> str:
    """All strings of the package, values in them as an ellipsis."""
    found = []
    for file in (ROOT / "glm_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(map(str, parts)))
    return "\n".join(found)


def test_every_message_of_the_page_is_said_somewhere() -> None:
    messages = re.findall(r"(?m)^\| `(.+?)` \|", PAGE)
    said = literals()

    missing = [
        message
        for message in messages
        if not all(part.strip() in said for part in message.split("…") if len(part.strip()) > 3)
    ]
    assert len(messages) > 12
    assert not missing
