"""Points of a sweep: every combination of the values of its overrides, each with a name.

A name depends only on the point's own values, so that a sweep with more values finds the runs of an
earlier one.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from glm_dist.config.overrides import Groups, expand_override
from glm_dist.errors import ConfigError

NAME_KEY = "run.name"
SEED_KEY = "run.seed"

LONGEST_NAME = 200
"""Bytes of a run's name; file systems take 255."""

_CUT = len(".01234567")
"""Bytes that the digest of a cut name takes."""

_UNUSUAL = re.compile(r"[^A-Za-z0-9.-]+")


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Its run.name."""
    settings: dict[str, str]
    """The values that vary, by key."""
    overrides: tuple[str, ...]
    """All of its overrides, with its run.name."""

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """The values it shares with the points that differ in their seed only."""
        return tuple((key, value) for key, value in self.settings.items() if key != SEED_KEY)

    def __str__(self) -> str:
        """Write what varies, as typed."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items())


def expand(overrides: Sequence[str], groups: Groups) -> list[Point]:
    """Combine all values of all overrides; the last one that has several varies fastest.

    Args:
        overrides: As typed; ``run.name`` is the name of the sweep, and begins those of its runs.
        groups: Options there are.

    Raises:
        ConfigError: The sweep has no name, nothing varies, or two points have the same values.
    """
    listed = [expand_override(text, groups) for text in overrides]
    varied = [
        _key(text) for text, values in zip(overrides, listed, strict=True) if values != [text]
    ]
    name = _checked_name(overrides, varied)
    labels = dict(zip(varied, _labels(varied), strict=True))
    points: dict[str, Point] = {}
    for chosen in itertools.product(*listed):
        settings = {_key(text): text.partition("=")[2] for text in chosen if _key(text) in varied}
        point_name = _point_name(name, {labels[key]: value for key, value in settings.items()})
        kept = [text for text in chosen if _key(text) != NAME_KEY]
        point = Point(point_name, settings, (*kept, f"{NAME_KEY}={_quoted(point_name)}"))
        if point_name in points:
            raise ConfigError(
                f"The sweep has the point {point} twice.\n  List each value once.",
                key="command line",
                value=str(point),
                fix="list each value once",
            )
        points[point_name] = point
    return list(points.values())


def sweep_name(overrides: Sequence[str]) -> str:
    """Return the value of ``run.name``; empty if there is none."""
    values = [text.partition("=")[2] for text in overrides if _key(text) == NAME_KEY]
    return values[-1].strip("'\"") if values else ""


def _checked_name(overrides: Sequence[str], varied: Sequence[str]) -> str:
    name = sweep_name(overrides)
    if not name or NAME_KEY in varied:
        raise ConfigError(
            "A sweep needs one run.name, with which the names of its runs begin.\n"
            f"  Set {NAME_KEY}=<name>.",
            key=NAME_KEY,
            value=name or None,
            fix=f"{NAME_KEY}=<name>",
        )
    if len(name.encode()) > LONGEST_NAME - _CUT:
        raise ConfigError(
            f"run.name has {len(name.encode())} bytes, and names of the runs begin with it: at most"
            f" {LONGEST_NAME - _CUT}.\n  Choose a shorter name.",
            key=NAME_KEY,
            value=name,
            fix=f"{NAME_KEY}=<shorter name>",
        )
    typed = [_key(text) for text in overrides]
    repeated = [key for key in varied if typed.count(key) > 1]
    if repeated or not varied:
        problem = f"{repeated[0]} is given several times" if repeated else "Nothing varies"
        raise ConfigError(
            f"{problem}.\n"
            f"  Write several values of a key with commas, for example {SEED_KEY}=1,2,3.",
            key=repeated[0] if repeated else "command line",
            value=None,
            fix=f"{SEED_KEY}=1,2,3",
        )
    return name


def _key(text: str) -> str:
    return text.partition("=")[0].strip().lstrip("+~")


def _labels(keys: Sequence[str]) -> list[str]:
    """Shorten keys to as many of their last parts as tell them apart."""
    parts = [re.split(r"[./]", key) for key in keys]
    most = max((len(each) for each in parts), default=1)
    for length in range(1, most + 1):
        labels = [".".join(each[-length:]) for each in parts]
        if len({*labels}) == len(labels):
            break
    return labels


def _point_name(sweep: str, settings: dict[str, str]) -> str:
    pieces = [f"{label}_{_in_a_name(value)}" for label, value in settings.items()]
    name = "-".join([sweep, *pieces])
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    kept = encoded[: LONGEST_NAME - _CUT].decode(errors="ignore")  # without half a character
    return f"{kept}.{_digest(name)}"


def _in_a_name(value: str) -> str:
    """Write a value with the characters of file names; a digest tells apart what that loses."""
    last = value.strip("'\"").rstrip("/").rpartition("/")[2]
    plain = _UNUSUAL.sub("_", last).strip("_.")
    return plain if plain == value else f"{plain}.{_digest(value)}".lstrip(".")


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name, re.ASCII) else f"'{name}'"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
