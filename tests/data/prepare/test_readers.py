"""Reading text in blocks takes time in proportion to the text, however long a document is."""

from pathlib import Path

import pytest

from glm_dist.data.prepare import readers
from glm_dist.data.prepare.readers import TextOptions, TextUnit, read_blocks


@pytest.mark.parametrize("unit", list(TextUnit), ids=lambda unit: unit.value)
def test_a_document_of_many_blocks_is_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: TextUnit
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    text = b"words " * 50_000 + b"\n\nmore\n\n"
    (tmp_path / "a.txt").write_bytes(text)
    find, looked_through = readers._last_border, 0

    def count(data: bytes, unit: TextUnit) -> int:
        nonlocal looked_through
        looked_through += len(data)
        return find(data, unit)

    monkeypatch.setattr(readers, "_last_border", count)
    blocks = list(read_blocks(tmp_path / "a.txt", TextOptions(text_unit=unit)))

    assert b"".join(block.data for block in blocks) == text
    assert len(blocks) == 1
    assert looked_through < 2 * len(text)


def test_a_border_across_two_reads_ends_a_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 4)
    (tmp_path / "a.txt").write_bytes(b"abc\n\r\nde")  # reads: abc\n, \r\nde
    options = TextOptions(text_unit=TextUnit.paragraph)

    blocks = list(read_blocks(tmp_path / "a.txt", options))
    assert [(block.data, block.first_line, block.end) for block in blocks] == [
        (b"abc\n\r\n", 1, 6),
        (b"de", 3, 8),
    ]
