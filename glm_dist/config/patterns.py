"""The language of patterns: text with blanks, and what examples put between it.

==================== ==========================================================================
``{premise}``        the field of that name; ``{meta.title}`` is a field inside another
``{text:no_stop}``   with filters, one after the other; ``FILTERS`` lists them
``{{ "{a}" or {b}}}`` text and fields that are encoded together, as one part
``{|}``              border between the two sides of a prompt; the longer one is shortened first
``{*}``              slot of learned prompt tokens; nothing where a run has none
``[MASK]``           blank; [sMASK], [gMASK] and [SEP] as well
==================== ==========================================================================

A space before braces belongs to what they stand for: vocabularies that mark the beginning of words
encode " word" as one token. Parsing knows no example and no tokenizer.
"""

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

MASKS = ("[MASK]", "[sMASK]", "[gMASK]")

KEEP_END = "keep_end"
FIXED = "fixed"
FILTERS: dict[str, Callable[[str], str]] = {
    "no_stop": lambda text: text.rstrip(string.punctuation),
    "lower_first": lambda text: text[:1].lower() + text[1:],
    "upper_first": lambda text: text[:1].upper() + text[1:],
    "strip": str.strip,
    "strip_end": str.rstrip,
    KEEP_END: lambda text: text,
    FIXED: lambda text: text,
}
"""Filters of fields. no_stop removes punctuation at the end; keep_end shortens at the beginning,
and fixed never."""

_STRUCTURE = re.compile(r"\{\{|\{([^{}]*)\}|\}\}|[{}]")


class Mark(Enum):
    """Part of a prompt without text."""

    border = "{|}"
    slot = "{*}"


@dataclass(frozen=True)
class Field:
    """Field of an example."""

    name: str
    filters: tuple[str, ...] = ()
    before: str = ""
    """Space that belongs to it."""

    def filtered(self, text: str) -> str:
        """Return its text after all filters."""
        for name in self.filters:
            text = FILTERS[name](text)
        return self.before + text


@dataclass(frozen=True)
class Group:
    """Text and fields that are encoded together."""

    pieces: tuple[str | Field, ...]


Piece = str | Field | Group | Mark


class PatternError(ValueError):
    """Not a pattern; the message continues "… is malformed: "."""


def parse_pattern(text: str) -> list[Piece]:
    """Split a pattern into literal text, fields, groups and marks.

    Args:
        text: The pattern.

    Raises:
        PatternError: Braces are not closed or nested wrongly, a field has no name, or a filter
            is unknown.
    """
    pieces: list[Piece] = []
    inside: list[str | Field] | None = None  # pieces of the open group
    begin = 0
    for found in _STRUCTURE.finditer(text):
        target: list[Piece] | list[str | Field] = pieces if inside is None else inside
        literal = text[begin : found.start()]
        begin = found.end()
        is_open = found.group() == "{{"
        before = ""
        if literal.endswith(" ") and (found[1] is not None or is_open) and not _is_mark(found[1]):
            literal, before = literal[:-1], " "
        if literal:
            target.append(literal)
        if is_open and inside is None:
            inside = [before] if before else []
        elif found.group() == "}}" and inside is not None:
            pieces.append(_group(inside))
            inside = None
        elif found[1] is None:
            raise PatternError(f"{found.group()} at character {found.start()} has no partner")
        elif _is_mark(found[1]):
            if inside is not None:
                raise PatternError(f"{found.group()} stands inside {{{{ }}}}")
            pieces.append(Mark(found.group()))
        else:
            target.append(parse_field(found[1], before=before))
    if inside is not None:
        raise PatternError("{{ is not closed by }}")
    return [*pieces, *([text[begin:]] if text[begin:] else [])]


def parse_field(text: str, *, before: str = "") -> Field:
    """Read the name and the filters of a field, without braces.

    Args:
        text: Such as ``premise:no_stop``.
        before: Space before it.

    Raises:
        PatternError: It has no name, or a filter is unknown.
    """
    name, *filters = text.split(":")
    if not name.strip():
        raise PatternError(f"{{{text}}} has no name of a field")
    for each in filters:
        if each not in FILTERS:
            raise PatternError(
                f"the filter {each!r} of {{{text}}} is unknown; there are {', '.join(FILTERS)}"
            )
    return Field(name, tuple(filters), before)


def fields_of(pieces: Sequence[Piece]) -> Iterator[Field]:
    """List the fields of a pattern, those in groups included."""
    for piece in pieces:
        if isinstance(piece, Field):
            yield piece
        elif isinstance(piece, Group):
            yield from (inner for inner in piece.pieces if isinstance(inner, Field))


def count_blanks(pieces: Sequence[Piece]) -> int:
    """Count the masks that a pattern names."""
    return sum(piece.count(mask) for piece in pieces if isinstance(piece, str) for mask in MASKS)


def _is_mark(name: str | None) -> bool:
    return name in ("|", "*")


def _group(pieces: Sequence[str | Field]) -> Group:
    for piece in pieces:
        if isinstance(piece, str) and any(mask in piece for mask in MASKS):
            raise PatternError("a blank stands inside {{ }}")
    return Group(tuple(pieces))
