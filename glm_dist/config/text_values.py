"""Text that looks like a number: a run called 1.10 is not the run 1.1. And values of another form.

Hydra's grammar and YAML turn 1.10, 2026_11 and yes into numbers and switches, and OmegaConf turns
these back into other text where a key takes text.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import cast

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from glm_dist.config.keys import describe_type, field_types, type_of
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


def check_values_in_file(path: Path, *, group: str) -> None:
    """Refuse YAML values that are not of their key's form, and unquoted text that would change.

    A section, a list or a single value in place of another of these has no key in OmegaConf's
    errors, or none is raised.

    Args:
        path: File of an option, or conf/config.yaml.
        group: Group of the option; empty for config.yaml.

    Raises:
        ConfigError: A value has another form, or would not be stored letter by letter.
        yaml.YAMLError: The file is not YAML.
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    with path.open(encoding="utf-8") as stream:
        is_global = not group or "@package _global_" in stream.readline()
        stream.seek(0)
        root = yaml.compose(stream, Loader=loader)  # of a string, errors could not name the file
    for key, name, value in _entries(root, "" if is_global else f"{group.replace('/', '.')}."):
        _check_letters(path, key, name, is_name=True)
        kind = type_of(key)
        if kind is not None and not isinstance(value, _forms(kind)) and not _is_open(value):
            raise _wrong_form(path, key, kind, value)
        if isinstance(value, yaml.ScalarNode):
            _check_letters(path, key, value, is_name=False)


def _check_letters(path: Path, key: str, node: yaml.ScalarNode, *, is_name: bool) -> None:
    if node.style or not (is_name or takes_text(key)):
        return  # quoted, or a number
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


def _forms(kind: object) -> tuple[type[yaml.Node], ...]:
    """Return the forms that values of a type have in YAML."""
    if isinstance(kind, types.UnionType):
        return tuple(form for option in typing.get_args(kind) for form in _forms(option))
    if is_dataclass(kind) or typing.get_origin(kind) is dict:
        return (yaml.MappingNode,)
    return (yaml.SequenceNode if typing.get_origin(kind) is list else yaml.ScalarNode,)


def _is_open(node: yaml.Node) -> bool:
    """Return True for what stands for nothing yet, or for the value of another key."""
    is_empty = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
    return is_empty or (isinstance(node, yaml.ScalarNode) and "${" in node.value)


def _wrong_form(path: Path, key: str, kind: object, node: yaml.Node) -> ConfigError:
    names = {yaml.MappingNode: "a section", yaml.SequenceNode: "a list"}
    found = names.get(type(node), "a single value")
    name = key.rpartition(".")[2]
    forms = {yaml.MappingNode: f"{name}: {{<name>: <text>}}", yaml.SequenceNode: f"{name}: [...]"}
    example = forms.get(_forms(kind)[0], f"{name}: ...")
    if is_dataclass(kind) and isinstance(kind, type):
        shown = [f"{each}: ..." for each in field_types(kind)][:2]
        example = f"{name}: {{{', '.join([*shown, '...'])}}}"
    return ConfigError(
        f"{path}, line {node.start_mark.line + 1}: {key} is {found}, but it must be"
        f" {describe_type(kind)}.\n"
        f"  Write {example}",
        key=key,
        value=found,
        fix=example,
    )


def _entries(
    node: yaml.Node | None, prefix: str
) -> Iterator[tuple[str, yaml.ScalarNode, yaml.Node]]:
    """Full keys, with the nodes of their names and values; outer ones first."""
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        yield key, name, value
        yield from _entries(value, f"{key}.")
