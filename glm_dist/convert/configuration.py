"""The complete configuration of imported weights: sizes from the files, the rest as typed.

Official files hold tensors only. Heads change no shape, so they come from what was typed or from
the published model of the same size; the tokenizer has to be named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from glm_dist.config.load import default_config_dir, load_config
from glm_dist.config.overrides import parse_override
from glm_dist.config.schema import ModelConfig, RunConfig, TokenizerKind
from glm_dist.convert.source import Source
from glm_dist.data.tokenizer.choice import guess_kind
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer
from glm_dist.errors import ConfigError

HEADS = "model.num_attention_heads"
POSITIONS = "model.max_position_embeddings"
PUBLISHED_HEAD_SIZE = 64
"""Of every published GLM with learned positions."""
SHORT_ROWS = 128
"""Tokens of a row in conf/batch/tiny.yaml, the default."""


def complete_configuration(
    source: Source, overrides: Sequence[str], *, target: Path, config_dir: Path | None = None
) -> RunConfig:
    """Compose the configuration that imported weights are used with.

    Args:
        source: Weights that do not come from a run of ours.
        overrides: As typed.
        target: Run folder to be.
        config_dir: Folder of the groups; conf/ of the source tree if None.

    Raises:
        ConfigError: A value is wrong, a size differs from the files', or heads or tokenizer are not
            known.
        DataError: The tokenizer's files are missing or of another kind.
    """
    known, keys = _known(source, overrides)
    defaults = _model_defaults(source, keys, config_dir) + _defaults(source, keys)
    typed = [*defaults, *known]
    config = load_config([*typed, *_tokenizer_defaults(keys)], config_dir=config_dir)
    check_sizes(source, config.model, typed=keys)
    if "tokenizer.vocab_size" not in keys:
        number = open_tokenizer(TokenizerSpec.of(config.tokenizer)).vocab_size
        counted = f"tokenizer.vocab_size={number}"
        config = load_config([*typed, *_tokenizer_defaults(keys), counted], config_dir=config_dir)
    _check_vocabulary(source, config)
    _check_no_additions(config.model)
    name = config.run.name if "run.name" in keys else target.name
    runs = config.paths.runs if "paths.runs" in keys else str(target.absolute().parent)
    return replace(
        config, run=replace(config.run, name=name), paths=replace(config.paths, runs=runs)
    )


def heads_of(source: Source, overrides: Sequence[str], config_dir: Path | None = None) -> int:
    """Find the heads of weights that are converted without a configuration.

    Args:
        source: Weights.
        overrides: As typed.
        config_dir: See ``complete_configuration``.

    Raises:
        ConfigError: Nothing tells them, or they do not divide the hidden size.
    """
    if source.config is not None:
        return source.config.model.num_attention_heads
    known, keys = _known(source, overrides)
    defaults = _model_defaults(source, keys, config_dir) + _defaults(source, keys)
    config = load_config([*defaults, *known], config_dir=config_dir)
    check_sizes(source, config.model, typed=keys)
    return config.model.num_attention_heads


def _known(source: Source, overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Join what the files say beyond sizes with what was typed; list all keys with their values.

    A section whose group was typed is all as typed.
    """
    typed = {parse_override(text).key_or_group: text.partition("=")[2] for text in overrides}
    said = {parse_override(text).key_or_group: text for text in source.overrides}
    kept = {key: text for key, text in said.items() if key.partition(".")[0] not in typed}
    keys = {key: text.partition("=")[2] for key, text in kept.items()}
    return [*kept.values(), *overrides], keys | typed


def check_sizes(source: Source, model: ModelConfig, *, typed: Mapping[str, object]) -> None:
    """Refuse a configuration of other sizes than the files'.

    Position tables may be longer if that was typed: the rest of their rows is drawn.

    Args:
        source: Weights.
        model: Composed from what was typed.
        typed: Keys on the command line.

    Raises:
        ConfigError: A size differs.
    """
    for key, found in source.sizes.items():
        value = getattr(model, key.removeprefix("model."))
        may_grow = key == POSITIONS and key in typed
        if value == found or (may_grow and value > found):
            continue
        grow = f", or type {key}={value} to lengthen the tables" if key == POSITIONS else ""
        remedy = f"Leave {key} out" if key in typed else f"Add {key}={found}"
        if key == POSITIONS and value < found:
            grow = ""
        raise ConfigError(
            f"{key}={value}, but the weights have {found} ({source.title}).\n"
            f"  {remedy}{grow if key not in typed else ''}.",
            key=key,
            value=value,
            fix=f"{key}={found}",
        )


def _model_defaults(source: Source, keys: Mapping[str, str], config_dir: Path | None) -> list[str]:
    """Sizes as overrides, unless a model was chosen, whose sizes are compared instead."""
    if "model" in keys or "experiment" in keys:
        return []
    sizes = dict(source.sizes)
    if HEADS not in keys and HEADS not in sizes:
        sizes[HEADS] = _published_heads(source.model, config_dir or default_config_dir())
    return [f"{key}={value}" for key, value in sizes.items() if key not in keys]


def _published_heads(model: ModelConfig, folder: Path) -> int:
    """Heads of the published model with these layers and this width."""
    for file in sorted((folder / "model").glob("*.yaml")):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        same = all(values.get(key) == getattr(model, key) for key in ("num_layers", "hidden_size"))
        heads = values.get("num_attention_heads")
        if same and heads and model.hidden_size == heads * PUBLISHED_HEAD_SIZE:
            return int(heads)
    raise ConfigError(
        f"The weights do not show the number of heads, and no published GLM has"
        f" {model.num_layers} layers of width {model.hidden_size}.\n"
        f"  Add {HEADS}=<number>, as the model was trained with.",
        key=HEADS,
        value=None,
        fix=f"{HEADS}=<number>",
    )


def _defaults(source: Source, keys: Mapping[str, str]) -> list[str]:
    """Values that a configuration must have and a conversion does not depend on."""
    defaults = []
    if "experiment" not in keys:
        defaults += ["run.name=converted", f"run.steps={max(source.step, 1)}"]
        positions = [source.model.max_position_embeddings]
        if keys.get(POSITIONS, "").isdecimal():
            positions.append(int(keys[POSITIONS]))
        if "batch" not in keys and min(positions) < SHORT_ROWS:
            defaults.append(f"batch.row_length={min(positions)}")
    return [text for text in defaults if text.partition("=")[0] not in keys]


def _tokenizer_defaults(keys: Mapping[str, str]) -> list[str]:
    """The family of a tokenizer that is named by its files alone.

    Raises:
        ConfigError: No tokenizer is named, or its files do not tell which ids the model has.
        DataError: Nothing there is known.
    """
    path = keys.get("tokenizer.path", "").strip("'\"")
    if not path and not {"tokenizer", "experiment"} & keys.keys():
        raise ConfigError(
            "The weights come without a tokenizer, and mean nothing with another one's ids.\n"
            "  Add tokenizer.path=<its files>; tokenizer=bert, gpt2, roberta, chinese_fixed or"
            " chinese_unfixed says whose ids they are.",
            key="tokenizer.path",
            value=None,
            fix="tokenizer.path=<its files>",
        )
    if {"tokenizer", "experiment", "tokenizer.kind"} & keys.keys():
        return []
    kind = guess_kind(
        str(Path(path).expanduser()), typed="tokenizer.path=", other="tokenizer.kind=…"
    )
    if kind is TokenizerKind.chinese_sentencepiece and "tokenizer.fixed_task_masks" not in keys:
        raise ConfigError(
            f"{path} is the Chinese vocabulary, for which there are two schemes of ids.\n"
            "  Add tokenizer=chinese_fixed (GLM-Large-Chinese) or tokenizer=chinese_unfixed"
            " (GLM-10B-Chinese).",
            key="tokenizer",
            value=path,
            fix="tokenizer=chinese_fixed",
        )
    defaults = [f"tokenizer.kind={kind.value}"]
    if "tokenizer.task_masks" not in keys:
        has_masks = kind not in (TokenizerKind.bert, TokenizerKind.roberta)
        defaults.append(f"tokenizer.task_masks={str(has_masks).lower()}")
    return defaults


def _check_no_additions(model: ModelConfig) -> None:
    """Refuse parameters that only finetuning adds; files of other programs hold none of ours."""
    for key in ("lora_rank", "prompt_tokens"):
        if value := getattr(model, key):
            raise ConfigError(
                f"model.{key}={value} adds parameters that the weights do not have.\n"
                "  Leave it out here, and set it where training begins from the converted run.",
                key=f"model.{key}",
                value=value,
                fix=f"model.{key}=0",
            )


def _check_vocabulary(source: Source, config: RunConfig) -> None:
    """Refuse a tokenizer whose ids do not fill the word table up to the next multiple of 128."""
    rows = config.padded_vocab_size
    if rows == source.padded_vocab_size:
        return
    raise ConfigError(
        f"{config.tokenizer.path} has tokenizer.vocab_size={config.tokenizer.vocab_size} ids, which"
        f" make a word table of {rows} rows; the weights have {source.padded_vocab_size}"
        f" ({source.title}).\n"
        "  Name the tokenizer that the model was trained with: tokenizer.path=<its files>",
        key="tokenizer.path",
        value=config.tokenizer.path,
        fix="tokenizer.path=<its files>",
    )
