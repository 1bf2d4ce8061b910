"""Token files on disk: megatron-core's indexed format (.bin and .idx), mapped, checked, written.

``<prefix>.bin`` is the token ids of all documents end to end. ``<prefix>.idx`` is a header and
three arrays: tokens of each sequence (int32), byte offset of each sequence (int64), and the
sequence at which each document begins, with one more entry for the end (int64). Files written here
are read by Megatron-LM's tools and the other way round; a test does both. Nothing of megatron-core
itself is needed: its reader asks for torch, and its writer keeps the index in Python lists.

Opening reads the header and a few entries, so it takes the same time for any size.
"""

import os
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_dist.errors import DataError
from glm_dist.files import is_file

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, token type, sequences, documents + 1."""

TOKEN_TYPES: dict[int, np.dtype[np.integer[Any]]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int8),
    3: np.dtype(np.int16),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    8: np.dtype(np.uint16),
}
"""Integer types of the format, by their code in the header."""

BLOCK = 1 << 20
"""Index entries handled at a time."""

PREPARE_AGAIN = "Prepare the corpus again with glm-dist prepare --overwrite."


def bin_path(prefix: str | Path) -> Path:
    """Name the token file of a corpus."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """Name the index file of a corpus."""
    return Path(f"{prefix}.idx")


@dataclass(frozen=True, eq=False)
class IndexedTokens:
    """A mapped corpus."""

    prefix: str
    tokens: NDArray[np.integer[Any]]
    """All token ids, end to end; mapped from the file."""
    sequence_lengths: NDArray[np.int32]
    """Tokens of each sequence."""
    sequence_offsets: NDArray[np.int64]
    """Bytes in the .bin file before each sequence."""
    document_starts: NDArray[np.int64]
    """First sequence of each document, and the number of sequences at the end."""

    @property
    def num_tokens(self) -> int:
        """Tokens in the corpus."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents in the corpus."""
        return len(self.document_starts) - 1

    def document_offset(self, document: int) -> int:
        """Count the tokens before a document; for the number of documents, all tokens."""
        sequence = int(self.document_starts[document])
        if sequence == len(self.sequence_offsets):
            return self.num_tokens
        return int(self.sequence_offsets[sequence]) // self.tokens.dtype.itemsize

    def document_offsets(self, first: int, last: int) -> NDArray[np.int64]:
        """Count the tokens before each of the documents first … last; see ``document_offset``."""
        starts = self.document_starts[first : last + 1]
        inside = starts < len(self.sequence_offsets)
        total = self.num_tokens * self.tokens.dtype.itemsize
        offsets = np.where(inside, self.sequence_offsets[np.where(inside, starts, 0)], total)
        counts: NDArray[np.int64] = offsets // self.tokens.dtype.itemsize
        return counts

    def document(self, number: int) -> NDArray[np.integer[Any]]:
        """Read a document's token ids."""
        return self.tokens[self.document_offset(number) : self.document_offset(number + 1)]

    def document_at(self, token: int) -> int:
        """Return the number of the document that holds a token, counted over the corpus."""
        byte = token * self.tokens.dtype.itemsize
        sequence = self.sequence_offsets.searchsorted(byte, side="right") - 1
        return int(self.document_starts.searchsorted(sequence, side="right")) - 1

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by path, so that a worker process maps the files itself."""
        return (open_indexed, (self.prefix,))


def open_indexed(prefix: str | Path) -> IndexedTokens:
    """Map a corpus.

    Args:
        prefix: Path without .bin or .idx.

    Raises:
        DataError: A file is missing, cut short, of another format, or the two do not belong
            together.
    """
    index_file, token_file = idx_path(prefix), bin_path(prefix)
    for file in (index_file, token_file):
        if not is_file(file):
            raise DataError(
                f"{file} is missing; a prepared corpus has two files, <prefix>.bin and"
                " <prefix>.idx.\n"
                "  Check data.corpora.*.prefix, or run glm-dist prepare first.",
                key=str(file),
                fix="glm-dist prepare",
            )
    header = _read_header(index_file)
    index = np.memmap(index_file, mode="r", dtype=np.uint8)
    first = HEADER.size
    offsets_at = first + 4 * header.num_sequences
    starts_at = offsets_at + 8 * header.num_sequences
    end = starts_at + 8 * header.num_starts
    tokens = _map_tokens(token_file, header.token_type)
    corpus = IndexedTokens(
        prefix=str(prefix),
        tokens=tokens,
        sequence_lengths=np.frombuffer(index.data[first:offsets_at], np.int32),
        sequence_offsets=np.frombuffer(index.data[offsets_at:starts_at], np.int64),
        document_starts=np.frombuffer(index.data[starts_at:end], np.int64),
    )
    _check_ends(corpus, index_file, token_file)
    return corpus


@dataclass(frozen=True)
class _Header:
    token_type: "np.dtype[np.integer[Any]]"
    num_sequences: int
    num_starts: int


def _read_header(file: Path) -> _Header:
    """Read and check the header and the size of an index file."""
    with file.open("rb") as stream:
        data = stream.read(HEADER.size)
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise DataError(
            f"{file} is no index of a corpus: it begins with {data[:9]!r}, not with {MAGIC!r}.\n"
            f"  {PREPARE_AGAIN}",
            key=str(file),
            value=data[:9],
            fix="glm-dist prepare",
        )
    _, version, code, num_sequences, num_starts = HEADER.unpack(data)
    if version != VERSION or code not in TOKEN_TYPES:
        raise DataError(
            f"{file} has version {version} and token type {code} of the index format; this package"
            f" reads version {VERSION} and the integer types {sorted(TOKEN_TYPES)}.\n"
            f"  {PREPARE_AGAIN}",
            key=str(file),
            value=version,
            fix="glm-dist prepare",
        )
    wanted = HEADER.size + 12 * num_sequences + 8 * num_starts
    # Multimodal files end with one byte more for each sequence.
    if file.stat().st_size not in (wanted, wanted + num_sequences) or num_starts < 1:
        raise DataError(
            f"{file} was cut short or overwritten: it has {file.stat().st_size} bytes, not the"
            f" {wanted} of {num_sequences} sequences in {num_starts - 1} documents.\n"
            f"  {PREPARE_AGAIN}",
            key=str(file),
            value=file.stat().st_size,
            fix="glm-dist prepare",
        )
    return _Header(TOKEN_TYPES[code], num_sequences, num_starts)


def _map_tokens(file: Path, token_type: "np.dtype[np.integer[Any]]") -> NDArray[np.integer[Any]]:
    size = file.stat().st_size
    if size == 0:
        raise DataError(
            f"{file} is empty.\n  Check that the source has text. {PREPARE_AGAIN}",
            key=str(file),
            value=0,
            fix="glm-dist prepare",
        )
    count = size // token_type.itemsize
    mapped = np.memmap(file, mode="r", dtype=token_type, shape=(count,))
    return mapped.view(np.ndarray)  # slices of a plain array cost a third


def _check_ends(corpus: IndexedTokens, index_file: Path, token_file: Path) -> None:
    """Compare what the index says of the last document with the token file."""
    num_sequences = len(corpus.sequence_lengths)
    if num_sequences == 0 or corpus.document_starts[-1] != num_sequences:
        raise DataError(
            f"{index_file} is damaged: its documents end at sequence"
            f" {corpus.document_starts[-1]} of {num_sequences}.\n  {PREPARE_AGAIN}",
            key=str(index_file),
            value=int(corpus.document_starts[-1]),
            fix="glm-dist prepare",
        )
    itemsize = corpus.tokens.dtype.itemsize
    wanted = int(corpus.sequence_offsets[-1]) + itemsize * int(corpus.sequence_lengths[-1])
    size = token_file.stat().st_size
    if size != wanted:
        # bisect reads a few entries; searchsorted would copy the whole unaligned array.
        ends_in = bisect_right(corpus.sequence_offsets, size) - 1
        kind = "was cut short" if size < wanted else "is longer than its index"
        raise DataError(
            f"{token_file} {kind}: it has {size} bytes, which end inside sequence {ends_in}, not"
            f" the {wanted} of the {num_sequences} sequences in {index_file.name}.\n"
            f"  {PREPARE_AGAIN}",
            key=str(token_file),
            value=size,
            fix="glm-dist prepare",
        )


def token_type_for(vocab_size: int) -> "np.dtype[np.integer[Any]]":
    """Choose the smaller token type that holds every id, as Megatron-LM does."""
    return np.dtype(np.uint16) if vocab_size < 65_500 else np.dtype(np.int32)


def write_index(
    file: Path, token_type: "np.dtype[np.integer[Any]]", lengths: NDArray[np.int32]
) -> None:
    """Write the .idx file of documents that are one sequence each.

    Args:
        file: File to write.
        token_type: Type of the ids in the .bin file.
        lengths: Tokens of each document; may be a mapped file, is read in blocks.
    """
    code = next(code for code, kind in TOKEN_TYPES.items() if kind == token_type)
    num_documents = len(lengths)
    with file.open("wb") as stream:
        stream.write(HEADER.pack(MAGIC, VERSION, code, num_documents, num_documents + 1))
        for begin in range(0, num_documents, BLOCK):
            stream.write(np.ascontiguousarray(lengths[begin : begin + BLOCK]).tobytes())
        offset = 0
        for begin in range(0, num_documents, BLOCK):
            sizes = token_type.itemsize * lengths[begin : begin + BLOCK].astype(np.int64)
            ends = offset + sizes.cumsum()
            stream.write((ends - sizes).tobytes())
            offset = int(ends[-1])
        for begin in range(0, num_documents + 1, BLOCK):
            stream.write(np.arange(begin, min(begin + BLOCK, num_documents + 1)).tobytes())
        stream.flush()
        os.fsync(stream.fileno())


def write_documents(
    prefix: str | Path,
    documents: Iterable[Sequence[int] | NDArray[np.integer[Any]]],
    token_type: "np.dtype[np.integer[Any]]",
) -> None:
    """Write a small corpus, one sequence for each document.

    Args:
        prefix: Path without .bin or .idx.
        documents: Token ids, with the tokens that open and close a document.
        token_type: Type of the ids in the .bin file.
    """
    lengths = []
    with bin_path(prefix).open("wb") as stream:
        for document in documents:
            ids = np.asarray(document, token_type)
            stream.write(ids.tobytes())
            lengths.append(len(ids))
    write_index(idx_path(prefix), token_type, np.array(lengths, np.int32))
