"""Is a corpus still what its manifest says? A look that takes as long for any amount of text.

Small corpora are read whole, large ones at a few places; ``validate.py`` reads every byte.
"""

import hashlib
from pathlib import Path

from glm_dist.data.corpus.indexed import bin_path, idx_path
from glm_dist.data.corpus.manifest import Manifest
from glm_dist.errors import DataError
from glm_dist.files import HASH_BLOCK_BYTES, READ_BYTES, sha256_of

MOST_BLOCKS = 4
"""Blocks of the token file that are read: 256 MiB, less than a second."""


def spot_check(
    prefix: str | Path, manifest: Manifest, *, block_bytes: int = HASH_BLOCK_BYTES
) -> None:
    """Compare some of a corpus's bytes with the hashes in its manifest.

    Args:
        prefix: Path without .bin, .idx or .json; both files are there.
        manifest: Of the corpus.
        block_bytes: Bytes of the token file under one hash.

    Raises:
        DataError: A byte that was read differs.
    """
    tokens, index = bin_path(prefix), idx_path(prefix)
    noted = manifest.bin_sha256
    last = len(noted) - 1
    numbers = {last * part // (MOST_BLOCKS - 1) for part in range(MOST_BLOCKS)} if noted else set()
    for number in sorted(numbers):
        if _hash_block(tokens, number, block_bytes) != noted[number]:
            raise _changed(prefix, tokens, f"bytes {number * block_bytes:,} and following")
    is_small = index.stat().st_size <= block_bytes
    if manifest.idx_sha256 and is_small and sha256_of(index) != manifest.idx_sha256:
        raise _changed(prefix, index, "its content")


def _hash_block(file: Path, number: int, block_bytes: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(number * block_bytes)
        left = block_bytes
        while left and (data := stream.read(min(READ_BYTES, left))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def _changed(prefix: str | Path, file: Path, what: str) -> DataError:
    return DataError(
        f"{file} is not the file that was prepared: {what} differ from its manifest.\n"
        f"  Restore the file, or prepare the corpus again; `glm-dist data validate {prefix}` lists "
        "every change.",
        key=str(file),
        value=what,
        fix=f"glm-dist data validate {prefix}",
    )
