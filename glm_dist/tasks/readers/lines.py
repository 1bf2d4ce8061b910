"""Lines, rows and objects of files of examples, with the place of each for messages."""

import csv
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from glm_dist.data.prepare.encoding import LOOKED_AT, check_encoding
from glm_dist.data.prepare.inputs import COMPRESSIONS
from glm_dist.errors import DataError
from glm_dist.files import is_file

log = logging.getLogger(__name__)


def json_objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read JSON lines.

    Args:
        file: The file; empty lines are passed over.

    Yields:
        File and line number, and the object.

    Raises:
        DataError: The file is no plain text in UTF-8, or a line is no object.
    """
    check_content(file, is_json=True)
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{file}:{number}"
                yield where, json_object(line, where)


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """Read one object.

    Args:
        line: JSON.
        where: File and line for the message.

    Raises:
        DataError: It is no JSON, no object, or holds half of a surrogate pair.
    """
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise _no_utf_8(where, error) from error
    except (ValueError, RecursionError) as error:
        raise no_example(where, f"is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise no_example(where, "is no object with fields")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise no_example(where, "holds half of a surrogate pair, which is no character") from error
    return record


def json_document(file: Path) -> Any:
    """Read a file that is one JSON document.

    Args:
        file: The file.

    Raises:
        DataError: It is no plain text in UTF-8, or no JSON.
    """
    check_content(file, is_json=False)
    try:
        document = json.loads(file.read_bytes())
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise no_example(str(file), f"is not JSON: {error}") from error
    return document


def text_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Read lines of text, without white space around them.

    Args:
        file: The file; empty lines are kept.

    Yields:
        File and line number, and the line.

    Raises:
        DataError: The file is no plain text in UTF-8.
    """
    check_content(file, is_json=False)
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{file}:{number}"
            try:
                yield where, line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise _no_utf_8(where, error) from error


def table_rows(file: Path, *, delimiter: str, is_quoted: bool) -> Iterator[tuple[str, list[str]]]:
    r"""Read rows of a table.

    Args:
        file: The file; empty rows are passed over.
        delimiter: Between cells, such as "\t".
        is_quoted: Quotation marks hold cells together, as in CSV; False: they are text.

    Yields:
        File and line number where the row ends, and its cells.

    Raises:
        DataError: The file is no plain text in UTF-8, or a cell is not closed.
    """
    lines = _raw_lines(file)
    if is_quoted:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise no_example(f"{file}:{reader.line_num}", f"is no row: {error}") from error
        if row:
            yield f"{file}:{reader.line_num}", row


def _raw_lines(file: Path) -> Iterator[str]:
    check_content(file, is_json=False)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from stream
        except UnicodeDecodeError as error:
            raise _no_utf_8(str(file), error) from error


def named_rows(
    rows: Iterable[tuple[str, list[str]]], names: list[str] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the cells of rows their names.

    Rows that break off are left out, with a warning: the published QQP has some.

    Args:
        rows: Places and cells.
        names: Of the columns; None: the first row has them.

    Raises:
        DataError: A row has more cells than there are names.
    """
    short: list[str] = []
    for where, row in rows:
        if names is None:
            names = row
        elif len(row) > len(names):
            raise no_example(where, f"has {len(row)} cells, and there are {len(names)} columns")
        elif len(row) < len(names):
            short.append(where)
        else:
            yield where, dict(zip(names, row, strict=True))
    if short:
        log.warning("left out %d rows that lack columns, the first one %s", len(short), short[0])


def check_content(file: Path, *, is_json: bool) -> None:
    """Refuse compressed files and other encodings by what they are.

    Args:
        file: The file.
        is_json: True for JSON lines.

    Raises:
        DataError: It is no plain text in UTF-8.
    """
    if not is_file(file):
        raise DataError(
            f"{file} is no file of examples.\n  Correct the path, or get the file.", key=str(file)
        )
    with file.open("rb") as stream:
        first = stream.read(LOOKED_AT)
    if file.suffix.lower() in COMPRESSIONS or first.startswith(b"\x1f\x8b"):
        raise DataError(
            f"{file} is compressed; examples are read from plain JSON lines.\n"
            "  Decompress it first.",
            key=str(file),
            value=file.suffix,
        )
    check_encoding(file, first, is_json=is_json)


def _no_utf_8(where: str, error: UnicodeDecodeError) -> DataError:
    advice = "Convert it, for example with iconv -t UTF-8."
    return no_example(where, f"is not UTF-8: {error}", advice=advice)


def no_example(
    where: str, problem: str, *, advice: str = "Correct it, or leave it out."
) -> DataError:
    """Explain that a line is no example.

    Args:
        where: File and line.
        problem: Continues the sentence that begins with the place.
        advice: What to do.
    """
    return DataError(f"{where} {problem}.\n  {advice}", key=where, value=problem)
