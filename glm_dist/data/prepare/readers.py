"""Text files to documents: JSON lines, plain text and Parquet, compressed or not, in blocks.

A block is a megabyte of whole documents. Reading blocks is cheap and happens in one process,
in order; taking documents out of a block is the workers' part. Where blocks are cut depends on the
file alone.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from glm_dist.data.prepare.bad_lines import BadLine
from glm_dist.data.prepare.compression import open_text
from glm_dist.data.prepare.encoding import check_encoding
from glm_dist.data.prepare.fields import explain_missing, is_cut, suggest_key, text_of
from glm_dist.data.prepare.inputs import FileKind, kind_of
from glm_dist.data.prepare.parquet import read_rows

BLOCK_BYTES = 1 << 20
"""Text read at a time, uncompressed."""

BORDERS = (b"\n\n", b"\n\r\n")
"""Ends of paragraphs."""

LONGEST_BORDER = max(map(len, BORDERS))


class TextUnit(Enum):
    """Unit of a plain text file that becomes one document."""

    line = "line"
    paragraph = "paragraph"
    file = "file"


@dataclass(frozen=True)
class TextOptions:
    """Options for taking documents out of files."""

    text_key: str = "text"
    """Field of a JSON object, or column of a Parquet file, that holds the text; fields inside
    others by a dotted name."""
    text_unit: TextUnit = TextUnit.line
    """Unit of a plain text file that becomes one document."""


@dataclass(frozen=True)
class Block:
    """Part of a file that holds whole documents."""

    file: str
    kind: FileKind
    data: bytes
    """Uncompressed text; for Parquet, a line of JSON for each row."""
    first_line: int
    """Number of the first line (Parquet: row), from 1."""
    end: int
    """Start of the next block: bytes of uncompressed text, or rows of Parquet."""
    lines: int
    """Lines (Parquet: rows) in the block."""
    share: float
    """Share of the file read with this block, 0 to 1."""


@dataclass(frozen=True)
class Document:
    """A document as it was read."""

    text: str
    line: int
    """Number of its first line (Parquet: row), from 1."""


def read_blocks(
    file: Path, options: TextOptions, *, start: int = 0, first_line: int = 1
) -> Iterator[Block]:
    """Cut a file into blocks.

    Args:
        file: Text file.
        options: How documents are taken out.
        start: ``end`` of the block to go on after.
        first_line: Number of the first line there.

    Raises:
        DataError: The file cannot be decompressed, is no Parquet file with such a column, or holds
            something else than UTF-8 or JSON lines.
    """
    kind = kind_of(file)
    if kind is FileKind.parquet:
        yield from _parquet_blocks(file, options, start=start)
        return
    unit = options.text_unit if kind is FileKind.text else TextUnit.line
    with open_text(file) as stream:
        stream.skip(start)
        # Joined once, when a document ends: a file may be one document of any size.
        pieces: list[bytes] = []
        tail, position, line = b"", start, first_line
        # Reads end at multiples of BLOCK_BYTES, also when going on in the middle of a file, so that
        # the blocks of a file are always the same.
        wanted = -start % BLOCK_BYTES + BLOCK_BYTES
        while True:
            fresh = stream.read(wanted)
            at_end = len(fresh) < wanted
            if position == 0 and not pieces:
                check_encoding(file, fresh, is_json=kind is FileKind.jsonl)
            wanted = BLOCK_BYTES
            # The pieces hold no whole border, but a border may begin in them.
            cut = len(fresh) if at_end else _last_border(tail + fresh, unit) - len(tail)
            if cut <= 0 and not at_end:
                pieces.append(fresh)
                tail = (tail + fresh)[1 - LONGEST_BORDER :]
                continue
            data, rest = b"".join([*pieces, fresh[:cut]]), fresh[cut:]
            pieces, tail = [rest], rest[1 - LONGEST_BORDER :]
            if data:
                position += len(data)
                lines = data.count(b"\n") + (not data.endswith(b"\n"))
                share = 1.0 if at_end else stream.share
                yield Block(str(file), kind, data, line, position, lines, share)
                line += lines
            if at_end:
                return


def documents_of(block: Block, options: TextOptions) -> Iterator[Document | BadLine]:
    """Take the documents out of a block.

    Args:
        block: Whole documents.
        options: How documents are taken out.

    Yields:
        Documents, blank ones included, and what is wrong with lines that hold none.
    """
    number = block.first_line
    for piece in _pieces(block, options):
        if block.kind is FileKind.text:
            found = _plain_text(piece)
        elif piece.strip():
            found = _json_text(piece, options.text_key, is_record=block.kind is FileKind.jsonl)
        else:
            found = None
        match found:
            case str() if "\0" in found:
                yield BadLine(block.file, number, "holds NUL characters, as no text does")
            case str():
                yield Document(found, number)
            case _Problem():
                yield BadLine(block.file, number, found.reason, found.suggested_key)
        number += max(1, piece.count(b"\n"))


@dataclass(frozen=True)
class _Problem:
    """Reason why a piece of a file holds no document."""

    reason: str
    suggested_key: str | None = None


def _pieces(block: Block, options: TextOptions) -> list[bytes]:
    """Cut a block into what holds one document each."""
    if block.kind is FileKind.text:
        return _split_units(block.data, options.text_unit)
    return block.data.split(b"\n")


def _plain_text(piece: bytes) -> "str | _Problem":
    try:
        return piece.decode("utf-8").lstrip("\ufeff").strip("\r\n")
    except UnicodeDecodeError as error:
        return _Problem(f"not UTF-8 ({error.reason})")


def _json_text(line: bytes, key: str, *, is_record: bool) -> "str | _Problem":
    """Read a line of JSON: an object, or the text itself, which Parquet rows have become."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _Problem(f"not JSON ({error})")
    if not is_record:
        return _Problem(f"column {key!r} is no text") if record is None else str(record)
    text = text_of(record, key)
    if text is None:
        return _Problem(explain_missing(record, key), suggest_key(record))
    return (
        _Problem("holds half of a surrogate pair, which is no character") if is_cut(text) else text
    )


def _split_units(data: bytes, unit: TextUnit) -> list[bytes]:
    """Cut plain text into documents that keep their line ends, so that lines can be counted."""
    if unit is TextUnit.file:
        return [data]
    lines = re.findall(rb"[^\n]*\n|[^\n]+", data)
    if unit is TextUnit.line:
        return lines
    pieces: list[bytes] = []
    current: list[bytes] = []
    for line in lines:
        current.append(line)
        if not line.strip():
            pieces.append(b"".join(current))
            current = []
    return [*pieces, b"".join(current)] if current else pieces


def _last_border(data: bytes, unit: TextUnit) -> int:
    """Find where the last whole document ends; 0 if none does."""
    if unit is TextUnit.file:
        return 0
    if unit is TextUnit.line:
        return data.rfind(b"\n") + 1
    return max(data.rfind(each) + len(each) if each in data else 0 for each in BORDERS)


def _parquet_blocks(file: Path, options: TextOptions, *, start: int) -> Iterator[Block]:
    """Cut a column into blocks of rows; each row becomes a line of JSON."""
    first = start
    rows = read_rows(file, options.text_key, start=start, block_bytes=BLOCK_BYTES)
    for lines, end, share in rows:
        data = b"\n".join(lines)
        yield Block(str(file), FileKind.parquet, data, first + 1, end, end - first, share)
        first = end
