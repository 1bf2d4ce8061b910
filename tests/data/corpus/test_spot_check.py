"""A corpus that is no longer what its manifest says, found without reading all of it."""

import re
from pathlib import Path

import pytest

from glm_dist.data.corpus.manifest import Manifest
from glm_dist.data.corpus.spot_check import spot_check
from glm_dist.errors import DataError
from glm_dist.files import block_hashes, sha256_of
from tests.messages import Says


def write(folder: Path, num_bytes: int, *, block_bytes: int) -> tuple[Path, Manifest]:
    """Write files that stand for a corpus; their prefix and manifest."""
    prefix = folder / "c"
    tokens, index = folder / "c.bin", folder / "c.idx"
    tokens.write_bytes(bytes(place % 251 for place in range(num_bytes)))
    index.write_bytes(b"index")
    manifest = Manifest(
        tokenizer="t",
        vocab_size=1,
        documents=1,
        tokens=1,
        bin_sha256=block_hashes(tokens, block_bytes),
        idx_sha256=sha256_of(index),
    )
    return prefix, manifest


def flip(file: Path, place: int) -> None:
    """Change one byte of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("place", [0, 99, 100, 350, 399])
def test_any_byte_of_a_small_corpus_is_compared(place: int, tmp_path: Path, says: Says) -> None:
    prefix, manifest = write(tmp_path, 400, block_bytes=100)
    spot_check(prefix, manifest, block_bytes=100)
    flip(tmp_path / "c.bin", place)
    with pytest.raises(DataError) as caught:
        spot_check(prefix, manifest, block_bytes=100)
    assert caught.value.key == f"{prefix}.bin"
    assert f"bytes {place // 100 * 100} and following" in str(caught.value)
    says(caught.value)


def test_the_index_is_compared(tmp_path: Path) -> None:
    prefix, manifest = write(tmp_path, 10, block_bytes=100)
    flip(tmp_path / "c.idx", 2)
    with pytest.raises(DataError, match=re.escape(f"{prefix}.idx is not the file")):
        spot_check(prefix, manifest, block_bytes=100)


def test_a_large_corpus_is_read_at_four_places(tmp_path: Path) -> None:
    # Blocks 0 … 10: the first, the last and two between, 0, 3, 6 and 10.
    prefix, manifest = write(tmp_path, 1050, block_bytes=100)
    seen = []
    for block in range(11):
        flip(tmp_path / "c.bin", block * 100)
        try:
            spot_check(prefix, manifest, block_bytes=100)
        except DataError:
            seen.append(block)
        flip(tmp_path / "c.bin", block * 100)
    assert seen == [0, 3, 6, 10]
