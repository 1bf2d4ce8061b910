"""Ranges of single fields, written next to the field.

A field declares its range and one good value; ``Section.__post_init__`` checks them when the
typed configuration is built, and ``reference.py`` prints them. Rules that involve several fields
are in the sections and in ``checks.py``.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from glm_dist.errors import ConfigError

MISSING: Any = "???"  # OmegaConf's mark; spelled out, since the schema imports no omegaconf

LARGEST_WHOLE_NUMBER = 2**63 - 1
"""Largest seed, row number or counter that fits an array of 64 bits."""

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """Range of a number and a value that is right for GLM."""

    example: int | float
    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None

    def admit(self, value: int | float) -> bool:
        """Return True if a value lies in the range; NaN and infinity never do."""
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words, such as "a number of at least 0 and below 1"."""
        noun = "a whole number" if isinstance(self.example, int) else "a number"
        if self.at_least is not None and self.at_most is not None:
            return f"{noun} from {self.at_least} to {self.at_most}"
        parts = [
            words
            for words, limit in (
                (f"of at least {self.at_least}", self.at_least),
                (f"above {self.above}", self.above),
                (f"{'of ' * (self.above is None)}at most {self.at_most}", self.at_most),
                (f"below {self.below}", self.below),
            )
            if limit is not None
        ]
        return f"{noun} {' and '.join(parts)}".rstrip()


def bounded(
    example: T,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    default: T | None = None,
) -> T:
    """Declare a number with its range.

    Args:
        example: A value that is right for GLM; error messages propose it.
        at_least: Smallest value.
        above: Lower limit that itself is too small.
        at_most: Largest value.
        below: Upper limit that itself is too large.
        default: Value that means "off"; without it the number is required.

    Returns:
        A dataclass field.
    """
    bounds = Bounds(example, at_least, above, at_most, below)  # type: ignore[arg-type]
    value = MISSING if default is None else default
    declared: T = field(default=value, metadata={"bounds": bounds})
    return declared


LONGEST_NAME = 255
"""Bytes of a name that file systems take."""


def name_problem(value: str) -> str | None:
    """Say why a string cannot name a folder, as a predicate; None if it can."""
    if not value.strip():
        return "is empty"
    if "/" in value or "\\" in value:
        return "has a slash, but it names one folder"
    if value in (".", ".."):
        return "is not the name of a folder"
    if value != value.strip():
        return "begins or ends with a blank"
    if not value.isprintable():
        return "has control characters"
    if len(value.encode()) > LONGEST_NAME:
        return f"has {len(value.encode())} bytes, and a folder's name at most {LONGEST_NAME}"
    return None


@dataclass
class Section:
    """Base of the sections: checks each field's own range once all values are known."""

    key: ClassVar[str] = ""
    """Name of the section in the configuration."""

    def __post_init__(self) -> None:
        """Check the declared ranges.

        Raises:
            ConfigError: A number is out of its range.
        """
        for declared in fields(self):
            bounds = declared.metadata.get("bounds")
            value = getattr(self, declared.name)
            key = f"{self.key}.{declared.name}"
            for number in value if isinstance(value, list) else [value]:
                _check_width(key, number)
            if bounds is None or value == MISSING or bounds.admit(value):
                continue
            raise ConfigError(
                f"{key}={value}, but it must be {bounds}.\n"
                f"  Set {key}={bounds.example}, or leave it out to keep the group's value.",
                key=key,
                value=value,
                fix=f"{key}={bounds.example}",
            )


def _check_width(key: str, value: object) -> None:
    if isinstance(value, int) and value > LARGEST_WHOLE_NUMBER:
        raise ConfigError(
            f"{key}={value}, but it must be a whole number of at most 2^63 - 1 ="
            f" {LARGEST_WHOLE_NUMBER}.\n"
            f"  Set a smaller {key}, or leave it out to keep the group's value.",
            key=key,
            value=value,
            fix=f"{key}=<smaller>",
        )
