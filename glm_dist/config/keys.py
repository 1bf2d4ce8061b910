"""Keys of the configuration: their types in words, and the nearest to a mistyped one.

Read from the schema's annotations; no values and no YAML.
"""

import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum

from glm_dist.config.rules import Bounds
from glm_dist.config.schema import RunConfig


def leaf_keys(section: type = RunConfig, *, prefix: str = "") -> Iterator[str]:
    """Full keys of all single values; a free name is written ``<name>``.

    Args:
        section: Schema class to list.
        prefix: Key of that class within the configuration, with its dot.
    """
    for name, kind in field_types(section).items():
        yield from _leaves(kind, f"{prefix}{name}")


def _leaves(kind: object, key: str) -> Iterator[str]:
    if is_dataclass(kind) and isinstance(kind, type):
        yield from leaf_keys(kind, prefix=f"{key}.")
    elif typing.get_origin(kind) is dict:
        yield from _leaves(typing.get_args(kind)[1], f"{key}.<name>")
    else:
        yield key


def field_types(section: type) -> dict[str, object]:
    """Types of a schema class's fields by name."""
    hints = typing.get_type_hints(section)
    return {declared.name: hints[declared.name] for declared in fields(section)}


def type_of(key: str) -> object | None:
    """Type of a section or value, or None for a key that does not exist.

    Args:
        key: Full key such as ``model.hidden_size``.
    """
    kind: object = RunConfig
    for part in key.split("."):
        if is_dataclass(kind) and isinstance(kind, type):
            known = field_types(kind)
            if part not in known:
                return None
            kind = known[part]
        elif typing.get_origin(kind) is dict and part:
            kind = typing.get_args(kind)[1]
        else:
            return None
    return kind


def holds_keys(key: str) -> bool:
    """Return True for a section, or a key of named entries, which has no value itself.

    Args:
        key: Full key of an existing section or value.
    """
    kind = type_of(key)
    return is_dataclass(kind) or typing.get_origin(kind) is dict


def bounds_of(key: str) -> Bounds | None:
    """Declared range of a number, if it has one.

    Args:
        key: Full key of an existing value.
    """
    section, _, name = key.rpartition(".")
    owner = type_of(section) if section else RunConfig
    if not (is_dataclass(owner) and isinstance(owner, type)):
        return None
    for declared in fields(owner):
        if declared.name == name:
            return typing.cast("Bounds | None", declared.metadata.get("bounds"))
    return None


def describe_type(kind: object) -> str:
    """Describe the values of a type, in words that follow "it must be"."""
    if isinstance(kind, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return f"{' or '.join(describe_type(option) for option in options)} or null"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(member.name for member in kind)}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if isinstance(kind, type) and kind in words:
        return words[kind]
    if typing.get_origin(kind) is list:
        element = describe_type(typing.get_args(kind)[0]).partition(" ")[2]
        return f"a list of {element}s"
    if typing.get_origin(kind) is dict:
        held = "a corpus" if is_dataclass(typing.get_args(kind)[1]) else "a text"
        return f"a section with {held} under each name"
    return "a section with keys of its own"


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice a mistyped word most likely meant, or None.

    A full key is also found by its last part alone: ``steps`` means ``run.steps``.
    """
    known = list(choices)
    for choice in known:
        if choice.rpartition(".")[2] == word.rpartition(".")[2] and choice != word:
            return choice
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return close[0] if close else None
