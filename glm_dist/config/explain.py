"""What a failed composition means for the user: one ``ConfigError`` per mistake.

Hydra's and OmegaConf's exceptions arrive here as plain ``Exception``s and are read by their
documented attributes and texts, so that this file needs neither library.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from glm_dist.config.keys import bounds_of, describe_type, leaf_keys, nearest, type_of
from glm_dist.errors import ConfigError


def invalid_override(text: str, *, expected: str, fix: str) -> ConfigError:
    """An argument that is not an override this project takes.

    Args:
        text: The argument as typed.
        expected: What would have been right.
        fix: What to type instead.
    """
    return ConfigError(key="command line", found=text, expected=expected, fix=fix)


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
        expected = f"a key of {parent}: {', '.join(siblings)}"
        sibling = nearest(name, siblings)
        guess = f"{parent}.{sibling}" if sibling else None
    else:
        expected = "a group or key of the configuration"
        guess = nearest(key, [each for each in known if not parent or "." in each])
    fix = f"did you mean {guess}" if guess else "see docs/config.md for all keys"
    return ConfigError(key=key, found="unknown", expected=expected, fix=fix)


def unknown_option(group: str, value: object, options: Sequence[str]) -> ConfigError:
    """A group has no such option.

    Args:
        group: Name of the group, a folder of conf/.
        value: Option as typed.
        options: Options there are.
    """
    guess = nearest(str(value), options)
    return ConfigError(
        key=group,
        found=value,
        expected=f"one of {', '.join(options)}",
        fix=f"did you mean {group}={guess}" if guess else "choose one of them",
    )


def unknown_corpus(key: str, corpora: Sequence[str]) -> ConfigError:
    """A corpus to remove that is not there.

    Args:
        key: Key as typed, without its ~.
        corpora: Names there are.
    """
    guess = nearest(key.rpartition(".")[2], corpora)
    return ConfigError(
        key=f"~{key}",
        found="unknown",
        expected=f"one of {', '.join(corpora)}" if corpora else "a corpus, but none is left",
        fix=f"did you mean ~data.corpora.{guess}" if guess else "leave it out",
    )


def too_large(key: str) -> ConfigError:
    """A whole number beyond everything that can be computed with.

    Args:
        key: Full key.
    """
    return ConfigError(
        key=key,
        found="a number of hundreds of digits",
        expected="a number of at most 2^63 - 1",
        fix=f"set {_example(key)}, or leave it out to keep the group's value",
    )


def wrong_type(key: str, *, found: object) -> ConfigError:
    """A value of another type than the key's.

    Args:
        key: Full key of the schema.
        found: Value as typed or read.
    """
    bounds = bounds_of(key)
    return ConfigError(
        key=key,
        found="null" if found is None else found,
        expected=str(bounds) if bounds else describe_type(type_of(key)),
        fix=f"set {_example(key, found=found)}, or leave it out to keep the group's value",
    )


def missing_values(keys: Sequence[str]) -> ConfigError:
    """Values that nobody set.

    Args:
        keys: Full keys, at least one.
    """
    example = f"set {' '.join(_example(key) for key in keys)}"
    if any(key.startswith("run.") for key in keys):
        example = f"choose an experiment, e.g. experiment=quickstart, or {example}"
    return ConfigError(
        key=", ".join(keys),
        found="nothing",
        expected=" and ".join(describe_type(type_of(key)) for key in keys),
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
    found = (getattr(cause, "full_key", None) for cause in chain)
    # A list's key, not its item's.
    keys = [re.sub(r"\[\d+\]", "", str(key)) for key in found if key]
    for cause in chain:
        explained = _explain_one(cause, source, keys[0] if keys else "", typed)
        if explained is not None:
            return explained
    return ConfigError(
        key=keys[0] if keys else source,
        found=(str(error).strip() or type(error).__name__).splitlines()[0],
        expected="files that Hydra can compose",
        fix="correct the file or the override it names",
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
    kind = type(cause).__name__
    variable = re.search(r"Environment variable '(\w+)' not found", text)
    if variable:
        return _unset_variable(variable.group(1))
    if kind.startswith("Interpolation"):
        wanted = re.search(r"[Ii]nterpolation key '([^']+)'", text)
        if wanted is None:
            return _unusable_reference(key, text, typed.get(key))
        name = wanted.group(1)
        guess = nearest(name, leaf_keys())
        return ConfigError(
            key=key,
            found=f"${{{name}}}",
            expected="a reference to an existing key",
            fix=f"refer to ${{{guess}}}" if guess else "see docs/config.md for all keys",
        )
    if kind in ("ConfigKeyError", "ConfigAttributeError") and key:
        if key == "experiment" or key.startswith("experiment."):
            return _no_package_line(source, typed)
        return unknown_key(key, list(leaf_keys()))
    mistyped = ("ValidationError", "ConfigTypeError", "MissingMandatoryValue")
    if kind in mistyped and type_of(key) is not None:
        return _wrong_type(key, cause, typed.get(key))
    if kind == "MissingConfigException":
        return _missing_option(text, source)
    mark = getattr(cause, "problem_mark", None)
    if mark is not None:
        return ConfigError(
            key=f"{mark.name} line {mark.line + 1}",
            found="not YAML",
            expected="key: value lines",
            fix=f"correct it; the reader says: {getattr(cause, 'problem', text)}",
        )
    return None


def _unusable_reference(key: str, text: str, typed: str | None) -> ConfigError:
    kind = type_of(key)
    described = "a value" if kind is None else describe_type(kind)
    return ConfigError(
        key=key,
        found="a reference" if typed is None else typed,
        expected=f"a reference to {described}; now: {text.splitlines()[0]}",
        fix=f"set {_example(key)}, or leave it out to keep the group's value",
    )


def _wrong_type(key: str, cause: BaseException, typed: str | None) -> ConfigError:
    if typed is not None:
        return wrong_type(key, found=typed)
    pattern = r"Value '(.*?)' of type|Invalid value '(.*?)'|\bvalue: ([^\n]*)"
    value = re.search(pattern, str(cause), flags=re.S)
    groups = value.groups() if value else ()
    told = next((group for group in groups if group is not None), None)
    return wrong_type(key, found=getattr(cause, "value", None) if told is None else told)


def _missing_option(text: str, source: str) -> ConfigError:
    wanted = re.search(r"Could not (?:load|find) '([^']+)'", text)
    return ConfigError(
        key=source,
        found=wanted.group(1) if wanted else text.splitlines()[0],
        expected="an option that exists in its group folder",
        fix="correct the defaults list that names it",
    )


def _no_package_line(source: str, typed: Mapping[str, str]) -> ConfigError:
    return ConfigError(
        key=f"{source}/experiment/{typed.get('experiment', '<name>')}.yaml",
        found="values under the key experiment",
        expected="values of the whole configuration",
        fix="make `# @package _global_` the file's first line",
    )


def _unset_variable(variable: str) -> ConfigError:
    return ConfigError(
        key=variable,
        found="unset",
        expected="a folder, because the chosen option of paths reads this environment variable",
        fix=f"export {variable}=/a/folder/of/yours, or choose paths=local",
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
        return f"{key}=[1]"
    name = parts[2] if len(parts) > 2 else "<name>"
    return f"data.corpora.{name}.prefix=<path without .bin>"
