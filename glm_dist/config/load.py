"""Overrides in, one typed and checked ``RunConfig`` out: the only door to Hydra.

Hydra composes conf/, OmegaConf checks keys and types, the schema checks ranges and ``checks.py``
the rest. Whatever goes wrong leaves here as one ``ConfigError`` that names the full key. No torch.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from glm_dist import files
from glm_dist.config.checks import check_config
from glm_dist.config.explain import (
    explain_composition,
    missing_values,
    unknown_corpus,
    unknown_degree,
    wrong_type,
)
from glm_dist.config.finetuning import add_task, inherit, take_task_file, with_experiment
from glm_dist.config.migrations import upgrade
from glm_dist.config.overrides import checked_overrides, is_corpus, parse_override, value_text
from glm_dist.config.schema import RunConfig
from glm_dist.config.text_values import check_text_in_file
from glm_dist.errors import ConfigError

UNREADABLE = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    OSError,
    ValueError,  # no UTF-8, or a number of thousands of digits
    OverflowError,  # a whole number too long for a float
    RecursionError,  # YAML that refers to itself
)
"""Exceptions that wrong files and values raise when read, composed and resolved."""

_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
"""A reference of OmegaConf, which a backslash in front of it makes plain text."""


def load_config(overrides: Sequence[str], *, config_dir: Path | None = None) -> RunConfig:
    """Compose, resolve, type and check a configuration.

    Args:
        overrides: Group choices and values as typed: ``experiment=glm_large``, ``run.steps=10``.
        config_dir: Folder of the groups; conf/ of the source tree if None.

    Raises:
        ConfigError: A key, option or value is unknown, missing, out of range or contradictory.
    """
    return _checked(compose_config(overrides, config_dir=config_dir))


def compose_config(overrides: Sequence[str], *, config_dir: Path | None = None) -> RunConfig:
    """Do the same for a caller that will change values: contradictions are left to it.

    Args:
        overrides: As for ``load_config``.
        config_dir: As for ``load_config``.

    Raises:
        ConfigError: A key, option or value is unknown, missing or out of range.
    """
    folder = default_config_dir() if config_dir is None else config_dir
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"--config-dir={folder} has no config.yaml; it must be a folder like conf/, with that"
            " file and the groups.\n"
            "  Copy conf/ and change the copy, or leave the option out.",
            key="--config-dir",
            value=str(folder),
            fix="cp -r conf <folder>",
        )
    groups = config_groups(folder)
    parsed, task_file = take_task_file([parse_override(text) for text in overrides])
    try:
        options, values = checked_overrides(parsed, groups)
    except ConfigError as error:
        raise _with_degrees(error, overrides, config_dir) from None
    options = with_experiment(options, parsed, task_file)
    try:
        composed = copy.deepcopy(_composed(folder.resolve(), options, _stamp(folder)))
        add_task(composed, options, task_file)
        _set_values(composed, values)
        inherit(composed, options=options, read=load_config_file)
        _set_values(composed, values)  # over those of the run that was read
        _remove_corpora(composed, parsed)
        composed = cast(DictConfig, OmegaConf.merge(composed, _corpus_values(parsed)))
        config = _typed(composed)
    except UNREADABLE as error:
        typed = {each.key_or_group: value_text(each) for each in parsed}
        raise explain_composition(error, typed=typed, source=str(folder)) from error
    return _with_absolute_paths(config)


def _set_values(composed: DictConfig, values: Sequence[Override]) -> None:
    for each in values:
        OmegaConf.update(composed, each.key_or_group, each.value(), merge=True, force_add=True)


def load_config_file(path: Path) -> RunConfig:
    """Read back a configuration that ``dump_config`` wrote into a run folder, lately or long ago.

    ``migrations.py`` says how older ones are understood. No value is looked up outside of the file:
    it may come from somebody else, and the environment of a process holds secrets.

    Args:
        path: The YAML file.

    Raises:
        ConfigError: The file is missing or damaged, refers to values outside of it, or a later
            version of the package wrote it.
    """
    if files.exists(path) and not files.is_file(path):
        raise _unreadable(path)  # a pipe or a device would never end
    try:
        _refuse_aliases(path)
        loaded = OmegaConf.load(path)
        content = OmegaConf.to_container(loaded, resolve=False)
    except UNREADABLE as error:
        raise _unreadable(path) from error
    if not isinstance(content, dict) or isinstance(content.get("config_version"), str):
        raise _unreadable(path)
    _refuse_interpolations(path, content)
    saved = upgrade(cast(dict[str, Any], content), path)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), saved)
        return _checked(_typed(cast(DictConfig, merged)))
    except UNREADABLE as error:
        raise _wrong_value(path, explain_composition(error, typed={}, source=str(path))) from error
    except ConfigError as error:
        raise _wrong_value(path, error) from error


def dump_config(config: RunConfig) -> str:
    """YAML of a resolved configuration; ``load_config_file`` reads it back equal."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def default_config_dir() -> Path:
    """Folder conf/ beside the package, or inside it where it was installed from a wheel.

    Raises:
        ConfigError: Neither holds config.yaml.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "conf", package / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(
        f"The folder conf/ is missing beside {package}.\n"
        "  Install glm-dist again, or name the folder with --config-dir.",
        key="conf/config.yaml",
        value=str(package.parent),
        fix="--config-dir <folder>",
    )


def config_groups(folder: Path) -> dict[str, list[str]]:
    """Option names of every group.

    Args:
        folder: The folder conf/.
    """
    return {
        group.name: sorted(option.stem for option in group.glob("*.yaml"))
        for group in sorted(folder.iterdir())
        if group.is_dir()
    }


@lru_cache(maxsize=64)
def _composed(folder: Path, options: tuple[str, ...], stamp: tuple[object, ...]) -> DictConfig:
    """Groups put together by Hydra, which takes a third of a second; not to be changed.

    Args:
        folder: The folder conf/.
        options: Chosen ones, as ``group=option``.
        stamp: What ``_stamp`` says of the folder; another one composes again.
    """
    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed = compose("config", overrides=list(options), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        for path in sorted(folder.rglob("*.yaml")):  # one of them may say it better
            group = path.parent.relative_to(folder).as_posix()
            check_text_in_file(path, group=group.removeprefix("."))
        raise
    OmegaConf.set_struct(composed, False)  # the schema's types still refuse unknown keys
    chosen = composed.pop("hydra").runtime.choices
    for group, option in chosen.items():
        if not group.startswith("hydra/") and option is not None:
            check_text_in_file(folder / group / f"{option}.yaml", group=group)
    check_text_in_file(folder / "config.yaml", group="")
    return composed


def _stamp(folder: Path) -> tuple[object, ...]:
    """Paths, times and sizes of the files below a folder."""
    files = [(path, path.stat()) for path in sorted(folder.rglob("*.yaml"))]
    return tuple((str(path), found.st_mtime_ns, found.st_size) for path, found in files)


def _with_degrees(
    error: ConfigError, overrides: Sequence[str], config_dir: Path | None
) -> ConfigError:
    """Name the degrees that fit the model where an option such as ``parallel=tp3`` is missing."""
    asked = re.fullmatch(r"(tp|pp)(\d{1,6})", str(error.value))
    if error.key != "parallel" or asked is None:
        return error
    others = [text for text in overrides if not text.startswith("parallel=")]
    try:
        model = load_config(others, config_dir=config_dir).model
    except ConfigError:  # says more, once the layout is right
        return error
    if asked.group(1) == "tp":
        key, divided, number = "tensor", "model.num_attention_heads", model.num_attention_heads
    else:
        key, divided, number = "pipeline", "model.num_layers", model.num_layers
    return unknown_degree(
        error,
        key=f"parallel.{key}_parallel_size",
        degree=int(asked.group(2)),
        divided=divided,
        number=number,
    )


def _corpus_values(overrides: Sequence[Override]) -> DictConfig:
    """Values typed for single corpora, known or new.

    OmegaConf sets a field of an entry that does not exist yet only by merging a whole entry.
    """
    values = OmegaConf.create({})
    for override in overrides:
        if override.key_or_group.startswith("data.corpora.") and not override.is_delete():
            OmegaConf.update(values, override.key_or_group, override.value())
    return values


def _remove_corpora(composed: DictConfig, overrides: Sequence[Override]) -> None:
    corpora = composed.data.corpora
    for override in overrides:
        key = override.key_or_group
        if not (override.is_delete() and is_corpus(key)):
            continue
        name = key.rpartition(".")[2]
        if name not in corpora:
            raise unknown_corpus(key, list(map(str, corpora)))
        del corpora[name]


def _typed(composed: DictConfig) -> RunConfig:
    """Resolve interpolations and build the sections, which check their own ranges."""
    missing = sorted(_missing_keys(composed))
    if missing:
        raise missing_values(missing)
    OmegaConf.resolve(composed)
    return cast(RunConfig, OmegaConf.to_object(composed))


def _missing_keys(section: DictConfig, *, prefix: str = "") -> Iterator[str]:
    """Full keys without a value.

    Interpolations are looked up one by one, since only such a look-up names its key when it fails.
    """
    for name in map(str, section):
        if OmegaConf.is_missing(section, name):
            yield f"{prefix}{name}"
            continue
        try:
            value = section[name]
        except InterpolationToMissingValueError:
            continue  # the key it refers to is listed itself
        if isinstance(value, ListConfig):
            _check_elements(f"{prefix}{name}", value)
        if isinstance(value, DictConfig):
            yield from _missing_keys(value, prefix=f"{prefix}{name}.")


def _check_elements(key: str, listed: ListConfig) -> None:
    """Look elements up, so that an interpolation that fails names the key; refuse inner lists."""
    for place in range(len(listed)):
        if OmegaConf.is_missing(listed, place) or OmegaConf.is_config(listed[place]):
            raise wrong_type(key, found=str(OmegaConf.to_container(listed)))


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """Make every path independent of the working folder of whoever reads it later."""
    corpora = {
        name: replace(corpus, prefix=_absolute(corpus.prefix))
        for name, corpus in config.data.corpora.items()
    }
    kept = {name: _absolute(path) for name, path in config.data.validation_corpora.items()}
    paths, tokenizer, origin = config.paths, config.tokenizer, config.run.init_from
    examples = config.task.data
    train, valid, test, words = (
        None if path is None else _absolute(path)
        for path in (examples.train, examples.valid, examples.test, config.compare.last_words)
    )
    return replace(
        config,
        task=replace(config.task, data=replace(examples, train=train, valid=valid, test=test)),
        run=replace(config.run, init_from=None if origin is None else _absolute(origin)),
        data=replace(config.data, corpora=corpora, validation_corpora=kept),
        paths=replace(paths, data=_absolute(paths.data), runs=_absolute(paths.runs)),
        compare=replace(config.compare, last_words=words),
        tokenizer=replace(tokenizer, path=_absolute(tokenizer.path)),
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path.strip() else path


def _unreadable(path: Path) -> ConfigError:
    is_damaged = files.exists(path)
    remedy = (
        "Restore it from a copy; or remove it and start with the values of the last attempt,"
        " whose command is in provenance.json"
        if is_damaged
        else "Name a run folder that holds config.yaml"
    )
    return ConfigError(
        f"{path} {'cannot be read' if is_damaged else 'is missing'}: a run saves its"
        f" configuration there.\n  {remedy}.",
        key=str(path),
        value=None,
        fix="restore it" if is_damaged else "<run folder>",
    )


def _refuse_aliases(path: Path) -> None:
    """Refuse YAML that names a part of itself, which a few lines can make endless.

    Raises:
        yaml.YAMLError: It does; no run writes such a file.
    """
    with path.open("rb") as stream:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(stream)):
            raise yaml.YAMLError("an alias")


def _refuse_interpolations(path: Path, section: object, prefix: str = "") -> None:
    """Refuse references such as ${oc.env:NAME}: a run saves values only.

    Raises:
        ConfigError: A value has one; it has not been resolved.
    """
    entries = section.items() if isinstance(section, dict) else enumerate(cast(list[Any], section))
    for name, value in entries:
        key = f"{prefix}{name}"
        if isinstance(value, dict | list):
            _refuse_interpolations(path, value, f"{key}.")
        elif isinstance(value, str) and _INTERPOLATION.search(value):
            raise ConfigError(
                f"{path} refers to another value in {key}, but a run saves values only. Nothing was"
                " looked up.\n"
                f"  Write the value itself; {path.parent / 'overrides.txt'} has what was typed.",
                key=key,
                value=None,
                fix="write the value itself",
            )


def _wrong_value(path: Path, error: ConfigError) -> ConfigError:
    """A value that no run saves, with the file that has it."""
    mistake = str(error).splitlines()[0]
    return ConfigError(
        f"{path} was changed after a run saved it: {mistake}\n"
        f"  Put the value back; {path.parent / 'overrides.txt'} has what was typed.",
        key=error.key,
        value=error.value,
        fix="restore the file",
    )


def _checked(config: RunConfig) -> RunConfig:
    check_config(config, world_size=None)
    return config
