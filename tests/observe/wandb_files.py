"""Reader of the files that the wandb library records to, which have the blocks of LevelDB's log."""

import json
import struct
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def history(path: Path) -> list[dict[str, Any]]:
    """Return the rows that were logged, in order."""
    return [
        {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in each.history.item}
        for each in _of_kind(path, "history")
    ]


def exit_code(path: Path) -> int:
    """Return the exit status that W&B shows."""
    return int(_of_kind(path, "exit")[-1].exit.exit_code)


def configuration(path: Path) -> dict[str, Any]:
    """Return the run's configuration."""
    first = _of_kind(path, "run")[0].run.config.update
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in first}


def _of_kind(path: Path, kind: str) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    found = []
    for content in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == kind:
            found.append(record)
    return found


def _records(content: bytes) -> list[bytes]:
    assert content[:4] == b":W&B"
    position, parts, found = HEADER, b"", []
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK  # filled with zeros
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        position += HEADER
        parts += content[position : position + length]
        position += length
        if kind in (FULL, LAST):
            found.append(parts)
            parts = b""
    return found
