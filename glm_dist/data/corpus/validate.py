"""Is a corpus on disk what it was when it was made? Every byte of both files is read.

With a manifest each 64 MiB of the token file has its hash, so any changed byte is found and placed.
Without one (a corpus that Megatron-LM prepared) the index is compared with itself and with the
token file, which finds what would crash or mix up documents, but not a changed token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glm_dist.data.corpus.borders import border_tokens, broken_borders
from glm_dist.data.corpus.indexed import BLOCK, IndexedTokens, bin_path, idx_path, open_indexed
from glm_dist.data.corpus.manifest import Manifest, manifest_path, read_manifest
from glm_dist.data.corpus.origins import origins_path
from glm_dist.errors import GlmDistError
from glm_dist.files import HASH_BLOCK_BYTES, block_hashes, exists, is_file, sha256_of


@dataclass(frozen=True)
class Verdict:
    """Problems found in a corpus."""

    prefix: str
    problems: tuple[str, ...]
    has_manifest: bool
    """True if there were hashes to compare with."""
    documents: int = 0
    tokens: int = 0

    @property
    def is_sound(self) -> bool:
        """Return True if nothing is wrong."""
        return not self.problems


def validate_corpus(prefix: str | Path, *, block_bytes: int = HASH_BLOCK_BYTES) -> Verdict:
    """Read a corpus from end to end and compare it with its manifest.

    Args:
        prefix: Path without .bin, .idx or .json.
        block_bytes: Bytes of the token file under one hash of the manifest.

    Raises:
        DataError: There is no corpus of this name at all.
    """
    if not any(exists(path(prefix)) for path in (bin_path, idx_path, manifest_path)):
        open_indexed(prefix)  # says what is missing
    try:
        manifest = read_manifest(prefix)
    except GlmDistError as error:
        return Verdict(str(prefix), (str(error),), has_manifest=False)
    problems = [] if manifest is None else list(_changed_bytes(prefix, manifest, block_bytes))
    try:
        corpus = open_indexed(prefix)
    except GlmDistError as error:
        return Verdict(str(prefix), (*problems, str(error)), manifest is not None)
    problems += _broken_index(corpus)
    if manifest is not None:
        problems += _wrong_counts(corpus, manifest)
        tokens = border_tokens(manifest.tokenizer)
        if tokens is not None and not problems:
            cls, eos = tokens
            problems += broken_borders(corpus, cls=cls, eos=eos)
    return Verdict(
        prefix=str(prefix),
        problems=tuple(problems),
        has_manifest=manifest is not None,
        documents=corpus.num_documents,
        tokens=corpus.num_tokens,
    )


def _changed_bytes(prefix: str | Path, manifest: Manifest, block_bytes: int) -> Iterator[str]:
    """Compare hashes; those of the token file say where it was changed."""
    tokens, index = bin_path(prefix), idx_path(prefix)
    for file in (tokens, index):
        if not is_file(file):
            yield f"{file.name} is missing"
            return
    found, noted = block_hashes(tokens, block_bytes), manifest.bin_sha256
    size = tokens.stat().st_size
    if len(found) != len(noted):
        yield f"{tokens.name} has {len(found)} blocks where {len(noted)} were written"
    for number, (now, then) in enumerate(zip(found, noted, strict=False)):
        if now != then:
            begin = number * block_bytes
            end = min(begin + block_bytes, size)
            yield f"{tokens.name} was changed between bytes {begin} and {end}"
    if sha256_of(index) != manifest.idx_sha256:
        yield f"{index.name} was changed"
    origins = origins_path(prefix)  # a copy for training does without
    if is_file(origins) and sha256_of(origins) != manifest.origins_sha256:
        yield f"{origins.name} was changed"


def _broken_index(corpus: IndexedTokens) -> Iterator[str]:
    """Check that sequences follow each other and documents follow each other."""
    itemsize = corpus.tokens.dtype.itemsize
    offset = 0
    for begin in range(0, len(corpus.sequence_lengths), BLOCK):
        lengths = corpus.sequence_lengths[begin : begin + BLOCK].astype(np.int64)
        offsets = corpus.sequence_offsets[begin : begin + BLOCK]
        ends = offset + itemsize * lengths.cumsum()
        wrong = np.flatnonzero(offsets != ends - itemsize * lengths)
        if len(wrong) or (lengths < 0).any():
            place = begin + int(wrong[0] if len(wrong) else (lengths < 0).argmax())
            yield f"sequence {place} does not begin where the one before it ends"
            return
        offset = int(ends[-1])
    for begin in range(0, len(corpus.document_starts), BLOCK):
        starts = corpus.document_starts[max(0, begin - 1) : begin + BLOCK]
        falls = np.flatnonzero(np.diff(starts) < 0)
        if len(falls) or (begin == 0 and starts[0] != 0):
            yield f"document {begin + int(falls[0]) if len(falls) else 0} begins at a wrong place"
            return


def _wrong_counts(corpus: IndexedTokens, manifest: Manifest) -> Iterator[str]:
    for what, found, noted in (
        ("documents", corpus.num_documents, manifest.documents),
        ("tokens", corpus.num_tokens, manifest.tokens),
    ):
        if found != noted:
            yield f"{found} {what} where the manifest notes {noted}"
    largest = 0
    for begin in range(0, corpus.num_tokens, BLOCK):
        largest = max(largest, int(corpus.tokens[begin : begin + BLOCK].max()))
    if largest >= manifest.vocab_size:
        yield f"token id {largest} where the tokenizer has {manifest.vocab_size} ids"
