"""Parameters that learn; the others are frozen (``optimizer.trainable``)."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from glm_dist.config.parameter_specs import ParameterSpec, parameter_specs
from glm_dist.config.schema import RunConfig
from glm_dist.errors import ConfigError

_MOST_SHOWN = 3
"""Names that an error proposes."""


def trainable_names(config: RunConfig) -> frozenset[str]:
    """Return the names of the parameters that learn.

    Args:
        config: Configuration; its patterns are checked.

    Raises:
        ConfigError: A pattern matches no parameter of the model.
    """
    specs = parameter_specs(config.model, config.padded_vocab_size)
    patterns = config.optimizer.trainable
    _check(patterns, [spec.name for spec in specs])
    if patterns:
        return frozenset(s.name for s in specs if any(fnmatchcase(s.name, p) for p in patterns))
    only_added = config.model.lora_rank > 0
    return frozenset(spec.name for spec in specs if spec.is_added or not only_added)


def count_trainable(config: RunConfig) -> int:
    """Count the elements of the parameters that learn; the tied table counts once."""
    return sum(spec.size for spec in trained(config))


def trained(config: RunConfig) -> Iterable[ParameterSpec]:
    """Yield the parameters that learn."""
    names = trainable_names(config)
    specs = parameter_specs(config.model, config.padded_vocab_size)
    return (spec for spec in specs if spec.name in names)


def _likeness(pattern: str, name: str) -> float:
    """Compare a pattern without its wildcards with the end of a name that it is meant for."""
    words = pattern.replace("*", "")
    part = name[-len(words) - 1 :] if pattern.startswith("*") else name[: len(words) + 1]
    return difflib.SequenceMatcher(None, words, part).ratio()


def _check(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        near = sorted(names, key=lambda name: _likeness(pattern, name), reverse=True)[:_MOST_SHOWN]
        raise ConfigError(
            f"optimizer.trainable has {pattern!r}, which matches no parameter of the model. The"
            f" nearest are {', '.join(near)}.\n"
            "  A pattern matches the whole name, with * for any part of it, as in"
            " 'decoder.layers.0.*'.",
            key="optimizer.trainable",
            value=pattern,
            fix=f"optimizer.trainable=['{near[0]}']",
        )
