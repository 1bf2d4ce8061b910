"""First bytes of a text file that are no UTF-8 text, or no JSON lines."""

import codecs
from pathlib import Path
from shlex import quote

from glm_dist.data.prepare.inputs import COMPRESSIONS
from glm_dist.errors import DataError

LOOKED_AT = 1 << 16
"""Bytes that tell an encoding."""

MOST_NULS = 0.25
"""Share of NUL bytes, 0 to 1, that no UTF-8 text has; UTF-16 has a half in most scripts."""

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks; that of UTF-32 begins with that of UTF-16, so it comes first."""


def check_encoding(file: Path, first: bytes, *, is_json: bool) -> None:
    """Refuse a file that would give rubbish or nothing.

    Args:
        file: Name for the message.
        first: Its first bytes, uncompressed.
        is_json: True for JSON lines.

    Raises:
        DataError: The bytes are UTF-16, UTF-32 or no text, or begin a JSON array.
    """
    encoding = _encoding(first[:LOOKED_AT])
    if encoding is not None:
        fix = f"iconv -f {encoding} -t UTF-8 {quote(str(file))} > <new file>"
        raise DataError(
            f"{file} is {encoding}, or no text at all; texts are read as UTF-8.\n"
            f"  Convert it: {fix}",
            key=str(file),
            value=encoding,
            fix=fix,
        )
    if is_json and first.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"["):
        is_packed = file.suffix.lower() in COMPRESSIONS
        fix = f"jq -c '.[]' {quote(str(file))} > <new file>.jsonl"
        advice = "Decompress it, and convert what is in it" if is_packed else "Convert it"
        raise DataError(
            f"{file} is a JSON array; JSON lines have one object a line.\n  {advice}: {fix}",
            key=str(file),
            value="a JSON array",
            fix=fix,
        )


def _encoding(first: bytes) -> str | None:
    """Tell the encoding of first bytes; None if they may be UTF-8."""
    for mark, name in MARKS.items():
        if first.startswith(mark):
            return name
    if first.count(0) <= MOST_NULS * len(first):
        return None
    # Most scripts have their small half of a character in the second byte.
    return "UTF-16BE" if first[::2].count(0) > first[1::2].count(0) else "UTF-16LE"
