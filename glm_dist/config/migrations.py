"""Read yesterday's configurations: what a run saved, brought to the keys of today.

Pure functions on plain dicts. A version of the keys is left by one function of ``MIGRATIONS``; keys
that were added since need none, because their default in the schema means what was done before
they existed.
"""

import json
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

import glm_dist
from glm_dist.config.keys import field_types, leaf_keys, nearest
from glm_dist.config.rules import MISSING
from glm_dist.config.schema import CONFIG_VERSION, RunConfig
from glm_dist.errors import ConfigError

Saved: TypeAlias = dict[str, Any]
"""A configuration as YAML holds it: sections and values by name."""

MIGRATIONS: Mapping[int, Callable[[Saved], Saved]] = {}
"""By version n: what turns a configuration of version n into the same one of version n + 1."""

PROVENANCE_FILE = "provenance.json"
"""File beside a saved configuration that says which version of the package wrote it."""


def upgrade(
    saved: Saved,
    file: Path,
    *,
    migrations: Mapping[int, Callable[[Saved], Saved]] = MIGRATIONS,
    version: int = CONFIG_VERSION,
) -> Saved:
    """Bring a saved configuration to the present keys.

    Args:
        saved: Content of the file; not changed.
        file: Where it was read from, for messages.
        migrations: See ``MIGRATIONS``.
        version: Version to reach.

    Returns:
        The configuration in keys of ``version``, all of them known; those without a default in the
        schema are there.

    Raises:
        ConfigError: The file is of a later version, has a key that this version of the package does
            not know, or lacks one.
    """
    found = saved.get("config_version")
    if type(found) is not int or found < 1:
        shown = "no config_version" if found is None else f"config_version {found!r}"
        raise ConfigError(
            f"{file} has {shown}, so it is not a configuration that a run saved.",
            key="config_version",
            value=found,
            fix="name a run folder that holds config.yaml",
        )
    if found > version:
        raise ConfigError(
            f"{file} has config_version {found}, but this glm_dist ({glm_dist.__version__}) reads "
            f"versions up to {version}. {_written_by(file)}\n"
            "  Use the version of glm_dist that wrote it, or a later one.",
            key="config_version",
            value=found,
            fix="use the version of glm_dist that wrote it",
        )
    for number in range(found, version):
        saved = migrations[number](saved) | {"config_version": number + 1}
    _check_known(saved, file)
    _check_complete(saved, file)
    return saved


def _check_known(saved: Saved, file: Path) -> None:
    """Refuse keys that might have changed the result of whoever wrote them."""
    unknown = list(_unknown_keys(RunConfig, saved))
    if not unknown:
        return
    keys = ", ".join(unknown)
    guess = nearest(unknown[0], leaf_keys()) if len(unknown) == 1 else None
    likely = f" The nearest key there is: {guess}." if guess else ""
    raise ConfigError(
        f"{file} has {keys}, which this glm_dist ({glm_dist.__version__}) does not know and which "
        f"may change what the run computes.{likely} {_written_by(file)}\n"
        "  Use the version of glm_dist that wrote it. If somebody edited the file, "
        f"correct or remove {'that line' if len(unknown) == 1 else 'those lines'}.",
        key=keys,
        fix="use the version of glm_dist that wrote it, or remove the key",
    )


def _check_complete(saved: Saved, file: Path) -> None:
    """Refuse a file that lacks what its version had and no default can stand for."""
    missing = list(_missing_keys(RunConfig, saved))
    if not missing:
        return
    keys = ", ".join(missing)
    raise ConfigError(
        f"{file} lacks {keys}, which every saved configuration has and which decides what the run "
        "computes: the file is damaged.\n"
        f"  Put it back: {file.parent / 'overrides.txt'} has what was typed, and "
        "`glm-dist config <what was typed>` prints the whole file.",
        key=keys,
        fix="restore config.yaml from `glm-dist config` and overrides.txt",
    )


def _unknown_keys(section: type, saved: Saved, *, prefix: str = "") -> Iterator[str]:
    known = field_types(section)
    for name, value in saved.items():
        if name not in known:
            yield f"{prefix}{name}"
        else:
            for kind, inner, key in _sections(known[name], value, f"{prefix}{name}"):
                yield from _unknown_keys(kind, inner, prefix=f"{key}.")


def _missing_keys(section: type, saved: Saved, *, prefix: str = "") -> Iterator[str]:
    known = field_types(section)
    for declared in fields(section):
        key = f"{prefix}{declared.name}"
        if declared.name not in saved:
            if declared.default == MISSING:
                yield key
            continue
        for kind, inner, place in _sections(known[declared.name], saved[declared.name], key):
            yield from _missing_keys(kind, inner, prefix=f"{place}.")


def _sections(kind: object, value: object, key: str) -> Iterator[tuple[type, Saved, str]]:
    """Sections that a value holds: itself, or those it has by free names."""
    if not isinstance(value, dict):
        return  # a value, or one of the wrong type, which OmegaConf answers
    if isinstance(kind, type) and is_dataclass(kind):
        yield kind, value, key
    elif typing.get_origin(kind) is dict:
        for name, inner in value.items():
            yield from _sections(typing.get_args(kind)[1], inner, f"{key}.{name}")


def _written_by(file: Path) -> str:
    """Sentence about the version of the package that wrote a run folder's configuration."""
    try:
        content = json.loads((file.parent / PROVENANCE_FILE).read_text(encoding="utf-8"))
        attempt = content["attempts"][-1]
        version, commit = attempt["versions"]["glm_dist"], attempt["commit"]
    except (OSError, ValueError, LookupError, TypeError):
        return f"Nothing readable beside it ({PROVENANCE_FILE}) says which version wrote it."
    return f"It was written by glm_dist {version}" + (f" (commit {commit})." if commit else ".")
