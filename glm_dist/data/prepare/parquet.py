"""Parquet files to documents: blocks of rows of one column, each row a line of JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from glm_dist.data.prepare.fields import text_of
from glm_dist.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

ROWS_AT_A_TIME = 64
"""Rows decoded at a time."""


def read_rows(
    file: Path, text_key: str, *, start: int, block_bytes: int
) -> Iterator[tuple[list[bytes], int, float]]:
    """Read the texts of a file.

    Args:
        file: Parquet file.
        text_key: Column, or field inside a column as ``meta.text``.
        start: Rows to skip.
        block_bytes: Text at a time.

    Yields:
        Texts as JSON strings, ``null`` where a row has none; the rows read so far, those skipped
        included; and their share of the file, 0 to 1.

    Raises:
        DataError: The file is no Parquet file, or has no such column of texts.
    """
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _check_column(table.schema_arrow, text_key, file)
            yield from _blocks(table, text_key, start=start, block_bytes=block_bytes)
    except DataError:
        raise
    # pyarrow raises errors of its own C++ classes.
    except Exception as error:
        raise DataError(
            f"{file} is no Parquet file that can be read: {error}.\n  Fetch the file again.",
            key=str(file),
            value=str(error),
            fix="fetch the file again",
        ) from error


def _blocks(
    table: "pyarrow.parquet.ParquetFile", text_key: str, *, start: int, block_bytes: int
) -> Iterator[tuple[list[bytes], int, float]]:
    total = table.metadata.num_rows
    sizes = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
    row, group = 0, 0
    while group < len(sizes) and row + sizes[group] <= start:
        row, group = row + sizes[group], group + 1
    lines: list[bytes] = []
    size = 0
    for batch in table.iter_batches(
        batch_size=ROWS_AT_A_TIME, row_groups=range(group, len(sizes)), columns=[text_key]
    ):
        for record in batch.to_pylist():
            row += 1
            if row <= start:
                continue
            lines.append(json.dumps(text_of(record, text_key)).encode())
            size += len(lines[-1])
            if size >= block_bytes or row == total:
                yield lines, row, row / total
                lines, size = [], 0


def _check_column(schema: "pyarrow.Schema", text_key: str, file: Path) -> None:
    """Refuse a column that is not there or holds no texts."""
    columns = dict(_leaves(schema))
    if text_key in columns and _is_text(columns[text_key]):
        return
    texts = [name for name, kind in columns.items() if _is_text(kind)]
    if text_key in columns:
        problem = f"The column {text_key!r} of {file} holds {columns[text_key]}, no text"
    else:
        problem = f"{file} has no column {text_key!r}; its columns are {', '.join(columns)}"
    fix = f"--text-key {texts[0]}" if texts else ""
    advice = (
        f"Texts are in {', '.join(texts)}: add {fix}" if fix else "Leave it out: it has no text"
    )
    raise DataError(f"{problem}.\n  {advice}.", key="--text-key", value=text_key, fix=fix)


def _leaves(
    fields: "pyarrow.Schema | pyarrow.StructType", before: str = ""
) -> Iterator[tuple[str, "pyarrow.DataType"]]:
    """List columns with their types, fields of structs by dotted names."""
    import pyarrow.types

    for field in fields:
        if pyarrow.types.is_struct(field.type):
            yield from _leaves(field.type, f"{before}{field.name}.")
        else:
            yield f"{before}{field.name}", field.type


def _is_text(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
    )
    return any(check(kind) for check in checks)
