"""Run folders that old versions left behind, put back in place."""

import json
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def restore(version: str, folder: Path) -> Path:
    """Copy an old version's files, with paths that are right where they are now.

    Args:
        version: A folder beside this file.
        folder: Where to.

    Returns:
        The folder that holds corpora, vocabulary and run folders.
    """
    root = folder / version
    shutil.copytree(HERE / version, root)
    for file in root.rglob("*"):
        if file.suffix in (".yaml", ".txt") and file.name != "vocab.txt":
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(f"/run_{version}_root", str(root)), encoding="utf-8")
    return root


def expected(version: str) -> Any:
    """Return the results of the old version itself."""
    return json.loads((HERE / version / "expected.json").read_text(encoding="utf-8"))


def overrides_of(run: Path) -> list[str]:
    """Return the overrides that started a run."""
    return (run / "overrides.txt").read_text(encoding="utf-8").splitlines()[1:]
