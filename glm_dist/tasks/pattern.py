"""A pattern filled with the fields of an example: the parts of a prompt."""

import math
from collections.abc import Container, Mapping, Sequence

from glm_dist.config.patterns import FIXED, KEEP_END, Field, Mark, Piece, parse_pattern
from glm_dist.data.prepare.fields import explain_missing, find_field
from glm_dist.errors import DataError
from glm_dist.generate.prompt import Data, Part


class Pattern:
    """Text with fields of examples in it; ``config/patterns.py`` explains its language."""

    def __init__(self, text: str, *, shorten: Sequence[str] = ()) -> None:
        """Parse a pattern.

        Args:
            text: The pattern, already checked with the configuration.
            shorten: Fields that may be shortened; empty: all.

        Raises:
            PatternError: The text is no pattern.
        """
        self.text = text
        self._pieces = parse_pattern(text)
        self.names = frozenset(each.name for piece in self._pieces for each in _fields_of(piece))
        """Fields that it names."""
        self._shorten: Container[str] = frozenset(shorten) if shorten else _Everything()

    def parts(self, fields: Mapping[str, object]) -> list[Part]:
        """Put the fields of an example into the pattern.

        Args:
            fields: Of the example.

        Raises:
            DataError: A field is missing, or is neither a text nor a number.
        """
        return [self._part(piece, fields) for piece in self._pieces]

    def filled(self, fields: Mapping[str, object]) -> str:
        """Return the text with all fields in it.

        Args:
            fields: Of the example.

        Raises:
            DataError: As for ``parts``.
        """
        return "".join(part for part in self.parts(fields) if not isinstance(part, Mark))

    def texts(self, fields: Mapping[str, object]) -> list[str]:
        """Return the text with all fields in it, several where the only field is a list.

        Args:
            fields: Of the example.

        Raises:
            DataError: As for ``parts``.
        """
        only = self._pieces[0]
        if len(self._pieces) > 1 or not isinstance(only, Field):
            return [self.filled(fields)]
        value = find_field(fields, only.name)
        if not isinstance(value, list):
            return [self.filled(fields)]
        return [only.filtered(text_of_field({only.name: each}, only.name)) for each in value]

    def _part(self, piece: Piece, fields: Mapping[str, object]) -> Part:
        if isinstance(piece, str | Mark):
            return piece
        inner = [piece] if isinstance(piece, Field) else list(piece.pieces)
        named = [each for each in inner if isinstance(each, Field)]
        text = "".join(
            each.filtered(text_of_field(fields, each.name)) if isinstance(each, Field) else each
            for each in inner
        )
        return Data(
            text,
            shortens=any(each.name in self._shorten for each in named)
            and not any(FIXED in each.filters for each in named),
            keep_end=any(KEEP_END in each.filters for each in named),
        )


def _fields_of(piece: Piece) -> list[Field]:
    if isinstance(piece, str | Mark):
        return []
    inner = [piece] if isinstance(piece, Field) else piece.pieces
    return [each for each in inner if isinstance(each, Field)]


class _Everything(Container[str]):
    def __contains__(self, name: object) -> bool:
        return True


def text_of_field(fields: Mapping[str, object], name: str) -> str:
    """Return the text of a field, or a number as text.

    Args:
        fields: Of an example.
        name: Of the field; dotted for one inside another.

    Raises:
        DataError: It is missing, or neither a text nor a number.
    """
    value = find_field(fields, name)
    is_no_number = isinstance(value, float) and not math.isfinite(value)
    if is_no_number or isinstance(value, bool) or not isinstance(value, str | int | float):
        problem = f"it is {value}" if is_no_number else explain_missing(fields, name)
        raise DataError(
            f"the pattern names {name!r}: {problem}.\n"
            "  Correct the name in the pattern, or the examples.",
            key=name,
            value=value,
        )
    return str(value)
