"""A row as a person reads it: Part A with its blanks, Part B blank by blank, and who sees whom."""

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

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
    begin = 0
    segments = row.segments or (Segment(row.num_real_tokens, row.prefix_length),)
    for number, segment in enumerate(segments, 1):
        if len(segments) > 1:
            parts.append(Text(f"segment {number} of {len(segments)}", style="bold"))
        parts += _segment(row, begin, segment, tokenizer)
        begin += segment.length
    if with_mask:
        parts.append(_mask_picture(row, segments))
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


def _segment(row: Row, begin: int, segment: Segment, tokenizer: Tokenizer) -> list[RenderableType]:
    end, middle = begin + segment.length, begin + segment.prefix_length
    starts = [i for i in range(middle, end) if row.block_positions[i] == 1]
    numbers = {int(row.positions[start]): number for number, start in enumerate(starts, 1)}
    part_a = Text("A  ", style="bold")
    run: list[int] = []
    for index in range(begin, middle):
        number = numbers.get(int(row.positions[index])) if starts else None
        if number is None:
            run.append(int(row.tokens[index]))
            continue
        part_a.append(tokenizer.decode(run), style="not bold")
        mask = tokenizer.decode([int(row.tokens[index])])
        part_a.append(f"{mask}{number}", style=_style(number))
        run = []
    part_a.append(tokenizer.decode(run), style="not bold")
    lines: list[RenderableType] = [part_a]
    if not starts:
        return [*lines, *_predictions(row, begin, end, tokenizer)]
    table = Table("blank", "position", "block positions", "targets", box=None, pad_edge=False)
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], end], strict=True), 1):
        table.add_row(
            Text(str(number), style=_style(number)),
            str(int(row.positions[start])),
            f"1 … {int(row.block_positions[start:stop].max())}",
            Text(tokenizer.decode(row.targets[start:stop].tolist()), style=_style(number)),
        )
    return [*lines, Text("B", style="bold"), table]


def _predictions(row: Row, begin: int, end: int, tokenizer: Tokenizer) -> list[RenderableType]:
    """Targets of a row without blanks, as the baselines have them."""
    predicted = begin + np.flatnonzero(row.loss_mask[begin:end])
    if len(predicted) == 0:
        return []
    text = tokenizer.decode(row.targets[predicted].tolist())
    return [Text("predicted  ", style="bold").append(text, style="not bold red")]


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
