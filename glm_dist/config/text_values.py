"""Text that looks like a number: a run called 1.10 is not the run 1.1.

Hydra's grammar and YAML turn 1.10, 2026_11 and yes into numbers and switches, and OmegaConf turns
these back into other text where a key takes text.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from glm_dist.config.keys import type_of
from glm_dist.errors import ConfigError


def takes_text(key: str) -> bool:
    """Return True for keys whose values are text.

    Args:
        key: Full key.
    """
    kind = type_of(key)
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return str in options


def is_number_or_switch(value: object) -> bool:
    """Return True for what a key for text must not be given."""
    return isinstance(value, int | float)  # bool is an int


def check_nested_text(key: str, value: object) -> None:
    """Refuse numbers for keys of text inside braces, where the typed letters are lost.

    Args:
        key: Full key.
        value: As Hydra's grammar read it.

    Raises:
        ConfigError: One is a number, or true or false.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            check_nested_text(f"{key}.{name}", inner)
    elif takes_text(key) and is_number_or_switch(value):
        raise ConfigError(
            f"{key} is text, and {value} inside braces is read as a number or a switch, whose"
            " letters may differ from what was typed.\n"
            f"  Set {key}=<text> by itself, or quote the text inside the braces.",
            key=key,
            value=value,
            fix=f"{key}=<text>",
        )


def check_text_in_file(path: Path, *, group: str) -> None:
    """Refuse unquoted YAML values for keys of text that would become other text.

    Args:
        path: File of an option, or conf/config.yaml.
        group: Group of the option; empty for config.yaml.

    Raises:
        ConfigError: A value would not be stored letter by letter.
        yaml.YAMLError: The file is not YAML.
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    with path.open(encoding="utf-8") as stream:
        is_global = not group or "@package _global_" in stream.readline()
        stream.seek(0)
        root = yaml.compose(stream, Loader=loader)  # of a string, errors could not name the file
    for key, node, is_name in _scalars(root, "" if is_global else f"{group.replace('/', '.')}."):
        if node.style or not (is_name or takes_text(key)):
            continue  # quoted, or a number
        (read,) = cast(list[object], OmegaConf.to_container(OmegaConf.create(f"- {node.value}")))
        if is_number_or_switch(read) and (is_name or str(read) != node.value):
            written = f'"{node.value}":' if is_name else f'{key.rpartition(".")[2]}: "{node.value}"'
            raise ConfigError(
                f"{path}, line {node.start_mark.line + 1}: {node.value} stands for text"
                f" ({key}) and is read as {read}.\n"
                f"  Quote it: {written}",
                key=key,
                value=node.value,
                fix=written,
            )


def _scalars(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.ScalarNode, bool]]:
    """Full keys and nodes of names and values, and True for names."""
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        yield key, name, True
        if isinstance(value, yaml.ScalarNode):
            yield key, value, False
        else:
            yield from _scalars(value, f"{key}.")
