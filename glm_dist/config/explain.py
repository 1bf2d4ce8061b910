"""A failed composition in words for the user: one ``ConfigError`` per mistake.

The exceptions of Hydra and OmegaConf are distinguished by their classes; what only their texts say
(a variable, a reference, a value) is read from the texts.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import yaml  # type: ignore[import-untyped]
from hydra.errors import MissingConfigException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from glm_dist.config.keys import bounds_of, describe_type, leaf_keys, nearest, type_of
from glm_dist.config.wording import divisors, either
from glm_dist.errors import ConfigError

ALL_KEYS = "docs/config.md lists all keys."

YAML_REMEDIES = {
    "duplicate key": "Keep one of them.",
    "cannot start any token": "Indent with spaces, not tabs; quote texts that begin with a sign.",
    "escape character": "Write texts with backslashes in single quotes: key: 'C:\\data'.",
}
"""Remedies of the YAML reader's problems, by a part of their texts."""


def invalid_override(text: str, problem: str, *, advice: str) -> ConfigError:
    """An argument that is not an override this project takes.

    Args:
        text: The argument as typed.
        problem: What is wrong with it, as a predicate.
        advice: What to type instead, as a sentence.
    """
    return ConfigError(f"{text} {problem}.\n  {advice}.", key="command line", value=text)


def unknown_key(key: str, known: Sequence[str]) -> ConfigError:
    """A key that neither the schema nor the groups have.

    Args:
        key: Key as typed.
        known: Every group and full key.
    """
    parent, _, name = key.rpartition(".")
    siblings = sorted(
        each.rpartition(".")[2] for each in known if each.rpartition(".")[0] == parent
    )
    if parent and siblings:
        problem = f"{parent} has no key {name}; it has {', '.join(siblings)}"
        sibling = nearest(name, siblings)
        guess = f"{parent}.{sibling}" if sibling else None
    else:
        problem = f"{key} is neither a group nor a key of the configuration"
        guess = nearest(key, [each for each in known if not parent or "." in each])
    return ConfigError(
        f"{problem}.\n  {f'Did you mean {guess}?' if guess else ALL_KEYS}",
        key=key,
        value=None,
        fix=guess or "",
    )


def unknown_option(group: str, value: object, options: Sequence[str]) -> ConfigError:
    """A group has no such option.

    Args:
        group: Name of the group, a folder of conf/.
        value: Option as typed; None for a missing one.
        options: Options there are.
    """
    typed = "null" if value is None else value
    guess = nearest(str(typed), options)
    advice = f"Did you mean {group}={guess}?" if guess else "Choose one of these."
    return ConfigError(
        f"There is no {group}={typed}; the options are {', '.join(options)}.\n  {advice}",
        key=group,
        value=value,
        fix=f"{group}={guess or options[0]}",
    )


def unknown_degree(
    error: ConfigError, *, key: str, degree: int, divided: str, number: int
) -> ConfigError:
    """A layout that is no option, though its degree may be set: the degrees that fit.

    Args:
        error: What ``unknown_option`` said.
        key: Key of the degree.
        degree: The degree that was meant.
        divided: Key of the number that degrees have to divide.
        number: Its value.
    """
    problem, fits = str(error).partition("\n")[0], divisors(number)
    nearby = max(each for each in fits if each <= max(degree, 1))
    fix = f"parallel=dp {key}={nearby}"
    advice = f"Set {fix}."
    if degree not in fits:
        advice = f"{key} has to divide {divided}={number}: {either(fits)}. Set e.g. {fix}."
    return ConfigError(f"{problem}\n  {advice}", key=error.key, value=error.value, fix=fix)


def unknown_corpus(key: str, corpora: Sequence[str]) -> ConfigError:
    """A corpus to remove that is not there.

    Args:
        key: Key as typed, without its ~.
        corpora: Names there are.
    """
    guess = nearest(key.rpartition(".")[2], corpora)
    there = f"the corpora are {', '.join(corpora)}" if corpora else "no corpus is left"
    fix = f"~data.corpora.{guess}" if guess else ""
    return ConfigError(
        f"~{key} removes a corpus that is not there; {there}.\n"
        f"  {f'Did you mean {fix}?' if guess else 'Leave it out.'}",
        key=f"~{key}",
        value=None,
        fix=fix,
    )


def too_large(key: str) -> ConfigError:
    """A whole number beyond everything that can be computed with.

    Args:
        key: Full key.
    """
    return ConfigError(
        f"{key} has a number of hundreds of digits; the largest is 2^63 - 1.\n"
        f"  Set {_example(key)}, or leave it out to keep the group's value.",
        key=key,
        value=math.inf,
        fix=_example(key),
    )


def wrong_type(key: str, *, found: object) -> ConfigError:
    """A value of another type than the key's.

    Args:
        key: Full key of the schema.
        found: Value as typed or read.
    """
    bounds = bounds_of(key)
    needed = str(bounds) if bounds else describe_type(type_of(key))
    example = _example(key, found=found)
    return ConfigError(
        f"{key}={'null' if found is None else found}, but it must be {needed}.\n"
        f"  Set {example}, or leave it out to keep the group's value.",
        key=key,
        value=found,
        fix=example,
    )


def missing_values(keys: Sequence[str]) -> ConfigError:
    """Values that nobody set.

    Args:
        keys: Full keys, at least one.
    """
    example = " ".join(_example(key) for key in keys)
    advice = f"Set {example}."
    if any(key.startswith("run.") for key in keys):
        advice = f"Choose an experiment, e.g. experiment=quickstart, or set {example}."
    are = "is" if len(keys) == 1 else "are"
    return ConfigError(
        f"{' and '.join(keys)} {are} not set.\n  {advice}",
        key=", ".join(keys),
        value=None,
        fix=example,
    )


def explain_composition(error: Exception, *, typed: Mapping[str, str], source: str) -> ConfigError:
    """Find the key at fault in whatever Hydra or OmegaConf raised.

    Args:
        error: Exception of Hydra, OmegaConf or the YAML reader.
        typed: Values as the user typed them, by full key.
        source: File or folder that was read.
    """
    # OmegaConf raises with placeholders first and formats the message on the way out.
    chain = [cause for cause in _chain(error) if "$VALUE" not in str(cause)]
    found = (cause.full_key for cause in chain if isinstance(cause, OmegaConfBaseException))
    # A list's key, not its item's.
    keys = [re.sub(r"\[\d+\]", "", str(key)) for key in found if key]
    for cause in chain:
        explained = _explain_one(cause, source, keys[0] if keys else "", typed)
        if explained is not None:
            return explained
    stated = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(
        f"{keys[0] if keys else source} cannot be composed: {stated}\n"
        "  Correct the file or the override it names.",
        key=keys[0] if keys else source,
        value=stated,
        fix="",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Causes first: the deepest knows the key."""
    inner = error.__cause__ or error.__context__
    if inner is not None:
        yield from _chain(inner)
    yield error


def _explain_one(
    cause: BaseException, source: str, key: str, typed: Mapping[str, str]
) -> ConfigError | None:
    text = str(cause)
    variable = re.search(r"Environment variable '(\w+)' not found", text)
    if variable:
        return _unset_variable(variable.group(1))
    if isinstance(cause, InterpolationResolutionError):
        return _wrong_reference(key, text, typed.get(key))
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key:
        if key == "experiment" or key.startswith("experiment."):
            return _no_package_line(source, typed)
        return unknown_key(key, list(leaf_keys()))
    mistyped = ValidationError | ConfigTypeError | MissingMandatoryValue
    if isinstance(cause, mistyped) and type_of(key) is not None:
        return _wrong_type(key, cause, typed.get(key))
    if isinstance(cause, MissingConfigException):
        return _missing_option(cause, source)
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
        return _no_yaml(cause, cause.problem_mark)
    return None


def _no_yaml(cause: yaml.MarkedYAMLError, mark: yaml.Mark) -> ConfigError:
    problem = cause.problem or str(cause)
    fix = "key: value"
    advice = "Write one key and its value a line: `key: value`. Quote texts with braces or colons."
    for part, remedy in YAML_REMEDIES.items():
        if part in problem:
            fix = advice = remedy
    return ConfigError(
        f"{mark.name}, line {mark.line + 1}, is not YAML: {problem}.\n  {advice}",
        key=mark.name,
        value=mark.line + 1,
        fix=fix,
    )


def _wrong_reference(key: str, text: str, typed: str | None) -> ConfigError:
    """A ``${...}`` to nothing, or to a value that the key cannot take."""
    wanted = re.search(r"[Ii]nterpolation key '([^']+)'", text)
    if wanted is not None:
        name = wanted.group(1)
        guess = nearest(name, leaf_keys())
        return ConfigError(
            f"{key} refers to ${{{name}}}, which does not exist.\n"
            f"  {f'Did you mean ${{{guess}}}?' if guess else ALL_KEYS}",
            key=key,
            value=f"${{{name}}}",
            fix=f"{key}=${{{guess}}}" if guess else "",
        )
    kind = type_of(key)
    needed = "a value" if kind is None else describe_type(kind)
    return ConfigError(
        f"{key}={'a reference' if typed is None else typed} does not refer to {needed}:"
        f" {text.splitlines()[0]}.\n"
        f"  Set {_example(key)}, or leave it out to keep the group's value.",
        key=key,
        value=typed,
        fix=_example(key),
    )


def _wrong_type(key: str, cause: BaseException, typed: str | None) -> ConfigError:
    if typed is not None:
        return wrong_type(key, found=typed)
    pattern = r"Value '(.*?)' of type|Invalid value '(.*?)'|\bvalue: ([^\n]*)"
    value = re.search(pattern, str(cause), flags=re.S)
    groups = value.groups() if value else ()
    stated = next((group for group in groups if group is not None), None)
    return wrong_type(key, found=getattr(cause, "value", None) if stated is None else stated)


def _missing_option(cause: MissingConfigException, source: str) -> ConfigError:
    wanted = cause.missing_cfg_file or str(cause).splitlines()[0]
    return ConfigError(
        f"A defaults list in {source} names {wanted}, which has no file there.\n"
        "  Correct that defaults list, or add the file.",
        key=source,
        value=wanted,
        fix="",
    )


def _no_package_line(source: str, typed: Mapping[str, str]) -> ConfigError:
    file = f"{source}/experiment/{typed.get('experiment', '<name>')}.yaml"
    return ConfigError(
        f"{file} sets values below the key experiment, not below those of the configuration.\n"
        "  Make `# @package _global_` its first line.",
        key=file,
        value=None,
        fix="# @package _global_",
    )


def _unset_variable(variable: str) -> ConfigError:
    return ConfigError(
        f"The environment variable {variable} is not set, and the chosen option of paths reads a"
        " folder from it.\n"
        f"  Type `export {variable}=/a/folder/of/yours`, or choose paths=local.",
        key=variable,
        value=None,
        fix="paths=local",
    )


def _example(key: str, *, found: object = None) -> str:
    """An override that is right for the key, as near to the wrong value as alternatives allow."""
    bounds = bounds_of(key)
    if bounds is not None:
        return f"{key}={bounds.example}"
    kind = type_of(key)
    members = list(getattr(kind, "__members__", ()))
    if members:
        close = difflib.get_close_matches(str(found).lower(), members, n=1, cutoff=0.5)
        return f"{key}={[*close, *members][0]}"
    values = {
        "run.name": "my_run",
        "paths.data": "data",
        "paths.runs": "runs",
        "data.stage_starts": "[1000000]",
        "parallel.stage_layers": "[]",
    }
    if key.startswith("data.corpora"):
        return _corpus_example(key)
    return f"{key}={values.get(key, 'true' if kind is bool else '...')}"


def _corpus_example(key: str) -> str:
    parts = key.split(".")
    if parts[-1] == "weight":
        return f"{key}=1"
    if parts[-1] == "stage_weights":
        return f"{key}=[]"
    name = parts[2] if len(parts) > 2 else "<name>"
    return f"data.corpora.{name}.prefix=<path without .bin>"
