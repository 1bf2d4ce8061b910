"""Text files to documents: JSON lines, plain text and Parquet, compressed or not, in blocks.

A block is a megabyte of whole documents. Reading blocks is cheap and happens in one process,
in order; taking documents out of a block is the workers' part. Where blocks are cut depends on the
file alone.
"""

import bz2
import gzip
import io
import json
import lzma
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from glm_dist.data.prepare.inputs import FileKind, kind_of
from glm_dist.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet

BLOCK_BYTES = 1 << 20
"""Text read at a time, uncompressed."""

BORDERS = (b"\n\n", b"\n\r\n")
"""Ends of paragraphs."""

LONGEST_BORDER = max(map(len, BORDERS))

PARQUET_ROWS = 64
"""Rows decoded at a time."""


class TextUnit(Enum):
    """Unit of a plain text file that becomes one document."""

    line = "line"
    paragraph = "paragraph"
    file = "file"


@dataclass(frozen=True)
class TextOptions:
    """Options for taking documents out of files."""

    text_key: str = "text"
    """Field of a JSON object, or column of a Parquet file, that holds the text."""
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
class BadLine:
    """A line that holds no document."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


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
        DataError: The file cannot be decompressed or is no Parquet file.
    """
    kind = kind_of(file)
    if kind is FileKind.parquet:
        yield from _parquet_blocks(file, options, start=start)
        return
    unit = options.text_unit if kind is FileKind.text else TextUnit.line
    size = max(1, file.stat().st_size)
    with file.open("rb") as raw, _decompressed(raw, file) as stream:
        _skip(stream, start)
        # Joined once, when a document ends: a file may be one document of any size.
        pieces: list[bytes] = []
        tail, position, line = b"", start, first_line
        # Reads end at multiples of BLOCK_BYTES, also when going on in the middle of a file, so that
        # the blocks of a file are always the same.
        wanted = -start % BLOCK_BYTES + BLOCK_BYTES
        while True:
            fresh = _read(stream, file, wanted)
            at_end = len(fresh) < wanted
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
                share = 1.0 if at_end else raw.tell() / size
                yield Block(str(file), kind, data, line, position, lines, share)
                line += lines
            if at_end:
                return


def documents_of(block: Block, options: TextOptions) -> Iterator[str | BadLine]:
    """Take the documents out of a block.

    Args:
        block: Whole documents.
        options: How documents are taken out.

    Yields:
        Texts, blank ones included, and what is wrong with lines that hold none.
    """
    if block.kind is FileKind.parquet:
        yield from _parquet_documents(block, options)
        return
    if block.kind is FileKind.jsonl:
        for number, line in enumerate(block.data.split(b"\n"), block.first_line):
            if line.strip():
                yield _json_document(block.file, number, line, options.text_key)
        return
    number = block.first_line
    for piece in _split_units(block.data, options.text_unit):
        try:
            yield piece.decode("utf-8").lstrip("\ufeff").strip("\r\n")
        except UnicodeDecodeError as error:
            yield BadLine(block.file, number, f"not UTF-8 ({error.reason})")
        number += piece.count(b"\n")


def _json_document(file: str, number: int, line: bytes, key: str) -> str | BadLine:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadLine(file, number, f"not JSON ({error})")
    if not isinstance(record, dict) or key not in record:
        return BadLine(file, number, f"no field {key!r}")
    text = record[key]
    if not isinstance(text, str):
        return BadLine(file, number, f"field {key!r} is no string")
    if text.isascii():
        return text
    # JSON can spell half of a surrogate pair, which is no character.
    return text.encode("utf-8", "replace").decode("utf-8")


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


def _decompressed(raw: BinaryIO, file: Path) -> BinaryIO:
    match file.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))
        case ".xz":
            return cast(BinaryIO, lzma.LZMAFile(raw, mode="rb"))
        case ".bz2":
            return cast(BinaryIO, bz2.BZ2File(raw, mode="rb"))
        case ".zst":
            if sys.version_info >= (3, 14):
                from compression.zstd import ZstdFile
            else:
                from backports.zstd import ZstdFile

            return cast(BinaryIO, ZstdFile(raw, mode="rb"))
    return raw


def _skip(stream: BinaryIO, count: int) -> None:
    """Move forward; compressed streams can only read on."""
    try:
        stream.seek(count)
    except (OSError, io.UnsupportedOperation):
        while count > 0:
            passed = len(stream.read(min(count, BLOCK_BYTES)))
            count -= passed if passed else count


def _read(stream: BinaryIO, file: Path, count: int) -> bytes:
    """Read bytes; fewer only at the end."""
    try:
        parts = []
        missing = count
        while missing and (part := stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
    # gzip raises EOFError and zlib.error, zstd EOFError and its own error.
    except Exception as error:
        raise DataError(
            f"{file} is not readable: {error}.\n  Fetch or compress the file again.",
            key=str(file),
            value=str(error),
            fix="fetch or compress the file again",
        ) from error


def _parquet_blocks(file: Path, options: TextOptions, *, start: int) -> Iterator[Block]:
    """Cut a column into blocks of rows; each row becomes a line of JSON."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if options.text_key not in table.schema_arrow.names:
                raise ValueError(f"no column {options.text_key!r}")
            yield from _row_blocks(table, file, options, start=start)
    # pyarrow raises errors of its own C++ classes.
    except Exception as error:
        raise DataError(
            f"{file} is no Parquet file with a column {options.text_key!r}: {error}.\n"
            "  Name the column with --text-key, or fetch the file again.",
            key=str(file),
            value=str(error),
            fix="--text-key …",
        ) from error


def _row_blocks(
    table: "pyarrow.parquet.ParquetFile", file: Path, options: TextOptions, *, start: int
) -> Iterator[Block]:
    total = table.metadata.num_rows
    sizes = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
    row, group = 0, 0
    while group < len(sizes) and row + sizes[group] <= start:
        row, group = row + sizes[group], group + 1
    lines: list[bytes] = []
    size, first = 0, start
    for batch in table.iter_batches(
        batch_size=PARQUET_ROWS, row_groups=range(group, len(sizes)), columns=[options.text_key]
    ):
        for value in batch.column(0).to_pylist():
            row += 1
            if row <= start:
                continue
            lines.append(json.dumps(value if isinstance(value, str) else None).encode())
            size += len(lines[-1])
            if size >= BLOCK_BYTES or row == total:
                data = b"\n".join(lines)
                yield Block(
                    str(file), FileKind.parquet, data, first + 1, row, row - first, row / total
                )
                lines, size, first = [], 0, row


def _parquet_documents(block: Block, options: TextOptions) -> Iterator[str | BadLine]:
    for number, line in enumerate(block.data.split(b"\n"), block.first_line):
        text = json.loads(line)
        if text is None:
            yield BadLine(block.file, number, f"column {options.text_key!r} is no string")
        else:
            yield text
