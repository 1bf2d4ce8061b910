"""Hashes of large files: whole, and block by block so that damage has a place."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

HASH_BLOCK_BYTES = 64 << 20
"""Bytes of a token file under one hash of its manifest."""

READ_BYTES = 1 << 20


def file_hash(file: Path) -> str:
    """Hash a whole file. Returns hexadecimal SHA-256."""
    return next(_hashes(file, None), sha256().hexdigest())


def block_hashes(file: Path) -> list[str]:
    """Hash each ``HASH_BLOCK_BYTES`` of a file, and the rest."""
    return list(_hashes(file, HASH_BLOCK_BYTES))


def _hashes(file: Path, block_bytes: int | None) -> Iterator[str]:
    digest, filled = sha256(), 0
    with file.open("rb") as stream:
        while data := stream.read(
            READ_BYTES if block_bytes is None else min(READ_BYTES, block_bytes - filled)
        ):
            digest.update(data)
            filled += len(data)
            if filled == block_bytes:
                yield digest.hexdigest()
                digest, filled = sha256(), 0
    if filled:
        yield digest.hexdigest()
