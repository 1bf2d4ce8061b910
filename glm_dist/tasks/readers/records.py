"""An example as its file has it, and what a reader is given."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from glm_dist.config.schema import TaskConfig
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.tasks.readers.lines import no_example

STRAIGHT = str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "–": "-"})


class Split(Enum):
    """Use of a file of examples; some readers make more of training examples."""

    train = "train"
    valid = "valid"
    test = "test"


@dataclass(frozen=True)
class Record:
    """One example."""

    where: str
    """File and line."""
    fields: Mapping[str, Any]
    group: str = ""
    """Examples of one question or passage have one name, for metrics over groups."""
    is_right: bool = True
    """False if its answer is a wrong one: it counts where another one is chosen or written."""


@dataclass(frozen=True)
class Source:
    """Arguments of a reader."""

    file: Path
    split: Split
    task: TaskConfig
    tokenizer: Tokenizer
    """Readers that cut long texts into windows count its tokens."""


Reader = Callable[[Source], Iterator[Record]]


def straight(text: str) -> str:
    """Return a text with straight quotation marks and hyphens, as in the pretraining corpora."""
    return text.translate(STRAIGHT)


def need(fields: Mapping[str, Any], *names: str, where: str) -> list[Any]:
    """Return fields of a record.

    Args:
        fields: The record.
        names: Of the fields.
        where: File and line.

    Raises:
        DataError: One is missing.
    """
    for name in names:
        if name not in fields:
            has = ", ".join(map(str, fields)) or "none"
            raise no_example(where, f"has no field {name!r}; its fields are {has}")
    return [fields[name] for name in names]


def texts(fields: Mapping[str, Any], *names: str, where: str) -> list[str]:
    """Return text fields of a record, with straight quotation marks.

    Args:
        fields: The record.
        names: Of the fields.
        where: File and line.

    Raises:
        DataError: One is missing or no text.
    """
    found = need(fields, *names, where=where)
    for name, value in zip(names, found, strict=True):
        if not isinstance(value, str):
            raise no_example(where, f"has no text in {name!r}")
    return [straight(value) for value in found]
