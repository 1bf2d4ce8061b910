"""A row as a person reads it: Part A with its blanks, Part B blank by blank, and who sees whom."""

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from glm_dist.data.row_parts import SegmentParts, segments_of, take_apart
from glm_dist.data.rows import Row, Segment
from glm_dist.data.tokenizer.tokenizer import Tokenizer

BLANK_STYLES = ("bold red", "bold green", "bold magenta", "bold cyan", "bold yellow", "bold blue")
MASK_CELLS = 48
"""Columns of the picture of the attention mask."""


def render_row(row: Row, tokenizer: Tokenizer, *, with_mask: bool = True) -> RenderableType:
    """Draw a row.

    A blank's number and colour in Part A are those of its content in Part B, which stands in the
    order of emission.

    Args:
        row: Finished row.
        tokenizer: Turns ids into text.
        with_mask: Whether to draw the attention mask, coarsely.
    """
    parts: list[RenderableType] = [_head(row)]
    segments = take_apart(row, tokenizer)
    for number, segment in enumerate(segments, 1):
        if len(segments) > 1:
            parts.append(Text(f"segment {number} of {len(segments)}", style="bold"))
        parts += _segment(segment)
    if with_mask:
        parts.append(_mask_picture(row, segments_of(row)))
    return Group(*parts)


def _head(row: Row) -> Text:
    padding = len(row.tokens) - row.num_real_tokens
    where = f"row {row.index} of {row.corpus}: " if row.index >= 0 else ""
    return Text(
        f"{where}objective={row.objective} part_a={row.prefix_length}"
        f" part_b={row.num_real_tokens - row.prefix_length} padding={padding}"
        f" predicted={int(row.loss_mask.sum())}",
        style="bold",
    )


def _segment(parts: SegmentParts) -> list[RenderableType]:
    part_a = Text("A  ", style="bold")
    for piece in parts.part_a:
        if piece.blank is None:
            part_a.append(piece.text, style="not bold")
        else:
            part_a.append(f"{piece.text}{piece.blank}", style=_style(piece.blank))
    lines: list[RenderableType] = [part_a]
    if parts.predicted:
        text = Text("predicted  ", style="bold").append(parts.predicted, style="not bold red")
        return [*lines, text]
    if not parts.blanks:
        return lines
    table = Table("blank", "position", "block positions", "targets", box=None, pad_edge=False)
    for blank in parts.blanks:
        table.add_row(
            Text(str(blank.number), style=_style(blank.number)),
            str(blank.position),
            f"1 … {blank.length}",
            Text(blank.targets, style=_style(blank.number)),
        )
    return [*lines, Text("B", style="bold"), table]


def _style(number: int) -> str:
    return BLANK_STYLES[(number - 1) % len(BLANK_STYLES)]


def _mask_picture(row: Row, segments: tuple[Segment, ...]) -> Text:
    """Draw queries downwards and keys to the right; half blocks make cells square."""
    size = len(row.tokens)
    places = (np.arange(MASK_CELLS) * size) // MASK_CELLS
    sees = np.zeros((MASK_CELLS, MASK_CELLS), np.bool_)
    begin = 0
    for segment in segments:
        inside = (places >= begin) & (places < begin + segment.length)
        keys = places[None, :]
        allowed = (keys <= places[:, None]) | (keys < begin + segment.prefix_length)
        sees |= inside[:, None] & inside[None, :] & allowed
        begin += segment.length
    text = Text("attention: a query (down) sees a key (right)\n", style="bold")
    for upper, lower in zip(sees[0::2], sees[1::2], strict=True):
        cells = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
        line = "".join(cells[bool(u), bool(low)] for u, low in zip(upper, lower, strict=True))
        text.append(f"{line}\n", style="not bold blue")
    return text
