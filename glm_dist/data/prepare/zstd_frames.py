"""Zstandard files as streams that notice when the file was cut short."""

import io
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import zstandard

COMPRESSED_BYTES = 1 << 14
"""Zstandard input at a time; what comes out of it is kept whole."""


class ZstdFrames(io.RawIOBase):
    """Frames end to end; the library's own reader takes a file that was cut short for whole."""

    def __init__(self, raw: BinaryIO, library: "zstandard.ZstdDecompressor") -> None:
        """Read from where the file stands, with a decompressor of the library."""
        self._raw, self._library = raw, library
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._ready = memoryview(b"")  # a view, as text may be a thousand times its frame

    def readable(self) -> bool:
        """Whether bytes can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end of the last frame."""
        rest = b""
        while not self._ready:
            data = rest or self._raw.read(COMPRESSED_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0
            self._frame = self._frame or self._library.decompressobj()
            self._ready, rest = memoryview(self._frame.decompress(data)), b""
            if self._frame.eof:
                rest, self._frame = self._frame.unused_data, None
                if self._ready and rest:
                    self._raw.seek(-len(rest), io.SEEK_CUR)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count
