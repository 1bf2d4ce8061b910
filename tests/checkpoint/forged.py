"""Checkpoints that somebody made up: whatever they hold, their checksums are right."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and put a checksum on it that holds."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    change(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(content))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Put another file into a checkpoint, with size and hash that hold."""
    (folder / name).write_bytes(content)
    record = {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_manifest(folder, lambda manifest: manifest["files"].update({name: record}))


class Command:
    """Runs a command of the shell where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (self.command,))


def hostile_pickle(marker: Path) -> bytes:
    """A pickle that leaves a file and prints when it is loaded."""
    return pickle.dumps({"a": Command(f"touch {marker}; echo EXECUTED")})
