"""English of code and documents: words that are avoided, and first sentences of docstrings."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AVOIDED = re.compile(r"\b(anew|told|mend|mended|for want of)\b", re.IGNORECASE)
QUESTIONS = ("What", "Which", "Where", "Whether", "How", "When", "Who")
RULE = "CONTRIBUTING.md"
"""Names the words in order to forbid them."""


def tracked_files(*folders: str) -> list[Path]:
    """Files under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        for before, statement in zip([None, *node.body], node.body, strict=False):
            is_documented = before is None or isinstance(before, ast.Assign | ast.AnnAssign)
            if (
                is_documented
                and isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, statement.value.value.strip()


def test_words_to_avoid_are_avoided() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in tracked_files(
            *("glm_dist", "conf", "docs", "benchmarks", "launchers", "docker"),
            *("README.md", "CHANGELOG.md", "Makefile", "train.py"),
        )
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if AVOIDED.search(line)
    ]
    assert not found, "\n".join(found)
    assert AVOIDED.search((ROOT / RULE).read_text(encoding="utf-8"))


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for file in tracked_files("glm_dist/*.py", "benchmarks/*.py")
        for line, text in docstrings(ast.parse(file.read_text(encoding="utf-8")))
        if text.startswith(QUESTIONS) and text.split()[0].rstrip(",") in QUESTIONS
    ]
    assert not found, "\n".join(found)
