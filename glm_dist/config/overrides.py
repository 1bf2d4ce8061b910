"""Overrides as typed: parsed by Hydra's grammar, refused where they have no meaning here."""

import re
import sys
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from glm_dist.config.explain import (
    invalid_override,
    too_large,
    unknown_key,
    unknown_option,
    wrong_type,
)
from glm_dist.config.keys import holds_keys, leaf_keys, type_of
from glm_dist.config.text_values import check_nested_text, is_number_or_switch, takes_text
from glm_dist.errors import ConfigError

Groups = Mapping[str, Sequence[str]]
"""Option names by group."""


def parse_override(text: str) -> Override:
    """Read an override; text stays as typed, also where it looks like a number.

    Args:
        text: As typed.

    Raises:
        ConfigError: It does not follow the grammar.
    """
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(text)
        if takes_text(override.key_or_group) and is_number_or_switch(override.value()):
            key, _, value = text.partition("=")
            override = parser.parse_override(f"{key}='{value.strip()}'")
        return override
    except HydraException as error:
        raise _unreadable(text) from error
    except ValueError as error:  # Python reads no number of more than 4300 digits
        raise too_large(text.partition("=")[0]) from error


def expand_override(text: str, groups: Groups) -> list[str]:
    """Write an override with several values as one override for each; others stay as they are.

    Lists, ``choice()``, ``range()`` and, of groups, ``glob()`` have several values.

    Args:
        text: As typed.
        groups: Options there are.

    Raises:
        ConfigError: It does not follow the grammar, or its values cannot be listed.
    """
    override = parse_override(text)
    if not override.is_sweep_override():
        return [text]
    key = override.key_or_group
    value: object = override.value()
    if isinstance(value, Glob):
        values = value.filter(list(groups.get(key, ())))
        problem = f"names no option of {key}" if key in groups else "is for groups of options"
    elif override.is_choice_sweep() or override.is_range_sweep():
        values = _plain_choices(text) or list(map(str, override.sweep_string_iterator()))
        problem = "has no value"
    else:
        values, problem = [], "has no list of values"
    if not values:
        raise invalid_override(text, problem, advice=f"Write {key}=<value>,<value>")
    return [f"{text.partition('=')[0]}={each}" for each in values]


def _plain_choices(text: str) -> list[str]:
    """Elements of a list as typed, so that 1e-5 stays 1e-5; none if the grammar has to read it."""
    plain = re.fullmatch(r"[^=]*=\s*(?:choice\((?P<inner>.*)\)|(?P<outer>.*))", text, re.DOTALL)
    listed = (plain["inner"] or plain["outer"] or "") if plain else ""
    if re.search(r"[\[\](){}'\"\\]", listed):
        return []
    return [each.strip() for each in listed.split(",")]


def _unreadable(text: str) -> ConfigError:
    """An override that the grammar has no place for: mostly, a value that needs quotes."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        return invalid_override(
            text, "is not of the form key=value", advice=f"Write {text}=<value>"
        )
    if '"' in value:
        advice = "Open and close quotes, in pairs of one kind: 'key=\"a, b\"'"
        return invalid_override(text, "has quotes that do not match", advice=advice)
    advice = f"Write '{key}=\"{value}\"'"
    if value[:1] in ("[", "{"):
        advice = f"Quote the texts inside the brackets: \"{key}=['a=b','c d']\""
    return invalid_override(text, "has characters that need quotes", advice=advice)


def checked_overrides(
    overrides: Sequence[Override], groups: Groups
) -> tuple[tuple[str, ...], list[Override]]:
    """Options to compose, and values to set; those of single corpora are left out for later.

    A group chosen twice takes the last choice, so that a user can overrule a launcher.

    Args:
        overrides: Parsed overrides, in the order typed.
        groups: Options there are.

    Returns:
        Options as ``group=option``, and overrides of single values.

    Raises:
        ConfigError: A key or option is unknown, or a form of Hydra's that has no meaning here.
    """
    options: dict[str, str] = {}
    values: list[Override] = []
    for override in overrides:
        key = override.key_or_group
        _check_form(override)
        if key in groups:
            options[key] = _checked_option(override, groups[key])
        elif type_of(key) is None:
            raise unknown_key(key, [*groups, *leaf_keys()])
        elif not override.is_delete():
            _check_value(key, override.value())
            check_nested_text(key, override.value())
            if not key.startswith("data.corpora."):
                values.append(override)
            elif is_corpus(key) and not isinstance(override.value(), Mapping):
                raise wrong_type(key, found=value_text(override))
    chosen = [f"{group}={option}" for group, option in options.items() if option != "null"]
    return tuple(chosen), values


def _check_form(override: Override) -> None:
    text, key = str(override.input_line), override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise invalid_override(
            text,
            "sets an option of Hydra itself, which has no effect here",
            advice="Leave it out; the run folder is <paths.runs>/<run.name>",
        )
    if override.is_sweep_override():
        raise invalid_override(
            text,
            "has several values, and a job trains with one",
            advice="Try all of them with glm-dist sweep; quote a text with commas",
        )
    if override.package is not None:
        raise invalid_override(
            text, "has a @package, which groups here do not take", advice=f"Write {key}=<option>"
        )
    if override.is_delete() and key not in ("experiment", "debug") and not is_corpus(key):
        raise invalid_override(
            text,
            "removes what has to have a value; only corpora can go, ~data.corpora.<name>",
            advice=f"Leave it out, or set another value: {key}=<value>",
        )
    if override.is_delete() and override.value() is not None:
        raise invalid_override(text, "has a value after ~", advice=f"Write ~{key}")


def _check_value(key: str, value: object) -> None:
    """Refuse what OmegaConf would take for nothing, or fail to convert without naming the key."""
    if value == {} and holds_keys(key):
        fix = "~data.corpora.<name>" if key == "data.corpora" else ""
        remove = f"Remove corpora one by one with {fix}" if fix else "Leave it out"
        raise ConfigError(
            f"{key}={{}} changes nothing: keys given here are changed or added, and the others"
            " stay.\n"
            f"  {remove}.",
            key=key,
            value={},
            fix=fix,
        )
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_value(f"{key}.{name}", inner)
    for element in value if isinstance(value, list) else [value]:
        if isinstance(element, int) and abs(element) > sys.float_info.max:
            raise too_large(key)


def _checked_option(override: Override, options: Sequence[str]) -> str:
    group, value = override.key_or_group, override.value()
    if override.is_delete() or (value is None and group in ("experiment", "debug")):
        return "null"
    if str(value) not in options:
        raise unknown_option(group, value, options)
    return str(value)


def is_corpus(key: str) -> bool:
    """Return True for ``data.corpora.<name>``."""
    return key.startswith("data.corpora.") and key.count(".") == 2


def value_text(override: Override) -> str:
    """Return the value as typed."""
    return str(override.input_line).partition("=")[2]
