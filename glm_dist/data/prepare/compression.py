"""Text files as streams of bytes, decompressed by their suffix."""

import bz2
import gzip
import io
import lzma
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from glm_dist.errors import DataError

SKIP_BYTES = 1 << 20


@dataclass(frozen=True)
class TextStream:
    """An open file."""

    file: Path
    size: int
    """Bytes of the file as it lies on the disk, at least 1."""
    _raw: BinaryIO
    _stream: BinaryIO

    @property
    def share(self) -> float:
        """Share of the file that has been read, 0 to 1."""
        return self._raw.tell() / self.size

    def skip(self, count: int) -> None:
        """Move forward by uncompressed bytes; compressed streams can only read on."""
        try:
            self._stream.seek(count)
        except (OSError, io.UnsupportedOperation):
            while count > 0:
                passed = len(self._stream.read(min(count, SKIP_BYTES)))
                count -= passed if passed else count

    def read(self, count: int) -> bytes:
        """Read uncompressed bytes; fewer only at the end.

        Raises:
            DataError: The file cannot be decompressed.
        """
        try:
            parts = []
            missing = count
            while missing and (part := self._stream.read(missing)):
                parts.append(part)
                missing -= len(part)
            return b"".join(parts)
        # gzip raises EOFError and zlib.error, zstd EOFError and its own error.
        except Exception as error:
            raise DataError(
                f"{self.file} is not readable: {error}.\n  Fetch or compress the file again.",
                key=str(self.file),
                value=str(error),
                fix="fetch or compress the file again",
            ) from error


@contextmanager
def open_text(file: Path) -> Iterator[TextStream]:
    """Open a file, compressed or not."""
    with file.open("rb") as raw, _decompressed(raw, file) as stream:
        yield TextStream(file, max(1, file.stat().st_size), raw, stream)


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
