"""The values of a configuration by full key, to compare two of them or to show one."""

import dataclasses
from collections.abc import Iterator

ABSENT = "nothing"
"""Placeholder for the value of a key that only one of two configurations has."""


def values_of(section: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the full keys and values of a configuration."""
    if dataclasses.is_dataclass(section):
        items = [(each.name, getattr(section, each.name)) for each in dataclasses.fields(section)]
    elif isinstance(section, dict):
        items = list(section.items())
    else:
        yield prefix.removesuffix("."), section
        return
    for name, value in items:
        yield from values_of(value, f"{prefix}{name}.")


def shown_value(value: object) -> str:
    """Format a value as in an override."""
    return "null" if value is None else str(getattr(value, "name", value))
