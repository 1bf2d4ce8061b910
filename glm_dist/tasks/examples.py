"""Examples of a benchmark from JSON lines.

Three kinds, which their fields distinguish:

- choice: ``inputs``, ``choices`` and ``label``, the index of the right choice;
- answer: ``inputs`` and ``targets``, one right answer or several;
- text: ``text``, whose perplexity is measured.

The names of GLM-130B's files are read as well (``inputs_pretokenized``, ``choices_pretokenized``,
``targets_pretokenized``). ``inputs`` is a prompt, in which [MASK] is the blank; without one the
answer continues it. With a pattern the prompt is made of other fields, in whose text [MASK] is six
ordinary characters.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from glm_dist.config.schema import RunConfig
from glm_dist.config.task_checks import parse_checked
from glm_dist.errors import ConfigError, DataError
from glm_dist.files import is_file
from glm_dist.generate.prompt import Data, Part
from glm_dist.generate.prompt_checks import check_writes
from glm_dist.generate.sampling import Cut
from glm_dist.tasks.pattern import Pattern
from glm_dist.tasks.readers.lines import json_objects

ALIASES = {
    "inputs": ("inputs", "inputs_pretokenized", "input", "text"),
    "choices": ("choices", "choices_pretokenized"),
    "targets": ("targets", "targets_pretokenized", "target"),
    "label": ("label",),
    "text": ("text",),
}
"""Names of each field, the first that is there counts."""


class Kind(Enum):
    """Kinds of examples."""

    choice = "choice"
    answer = "answer"
    text = "text"


@dataclass(frozen=True)
class Example:
    """One example."""

    where: str
    """File and line."""
    parts: tuple[Part, ...]
    """Prompt: literal text and ``Data``; of a text the text itself."""
    choices: tuple[str, ...] = ()
    label: int = 0
    """Index of the right choice."""
    targets: tuple[str, ...] = ()
    """Right answers."""

    @property
    def cut(self) -> Cut:
        """End at which a long prompt is shortened: with a pattern as in training."""
        is_text = len(self.parts) == 1 and not isinstance(self.parts[0], Data)
        return Cut.left if is_text else Cut.right


@dataclass(frozen=True)
class Examples:
    """The examples of one file, all of one kind."""

    name: str
    kind: Kind
    examples: list[Example]


def read_examples(file: Path, *, pattern: str | None = None, limit: int | None = None) -> Examples:
    """Read a benchmark.

    Args:
        file: JSON lines.
        pattern: Prompt with fields of the examples in braces, such as ``{question} [MASK].``; None
            takes ``inputs``.
        limit: Number of examples, drawn with a fixed seed from all of the file.

    Raises:
        DataError: The file is missing, a line is no example, or lines are of different kinds.
    """
    made = None
    if pattern is not None:
        if not pattern.strip():
            raise ConfigError(
                "--pattern is empty.\n  Write for example --pattern '{question} [MASK].'",
                key="--pattern",
                value=pattern,
                fix="--pattern '{question} [MASK].'",
            )
        parse_checked(pattern, key="--pattern")
        made = Pattern(pattern)
    if not is_file(file):
        raise DataError(
            f"{file} is no file of examples.\n"
            "  Name a file of JSON lines with the fields inputs, choices and label, or inputs and"
            " targets, or text.",
            key=str(file),
        )
    found = [(kind, example) for kind, example in _examples(file, made)]
    kinds = {kind for kind, _ in found}
    if len(kinds) != 1:
        problem = "holds no examples.\n  Check the file."
        if kinds:
            problem = "mixes examples of several kinds.\n  Make one file for each."
        raise DataError(f"{file} {problem}", key=str(file))
    examples = [example for _, example in found]
    if limit is not None and limit < len(examples):
        # Not the first ones: files are often sorted by label.
        chosen = sorted(random.Random(0).sample(range(len(examples)), limit))
        examples = [examples[n] for n in chosen]
    return Examples(str(file.with_suffix("")), kinds.pop(), examples)


def _examples(file: Path, pattern: Pattern | None) -> Iterator[tuple[Kind, Example]]:
    for where, record in json_objects(file):
        yield _example(record, where, pattern)


def _example(record: dict[str, Any], where: str, pattern: Pattern | None) -> tuple[Kind, Example]:
    choices, targets = _field(record, "choices"), _field(record, "targets")
    if choices is None and targets is None:
        text = _field(record, "text")
        if not isinstance(text, str):
            raise _no_example(where, "has neither choices nor targets nor text")
        if pattern is not None:
            raise _no_example(where, "is a text, which is measured as it is, without a pattern")
        return Kind.text, Example(where, (Data(text),))
    parts = _parts(record, where, pattern)
    if choices is None:
        answers = targets if isinstance(targets, list) else [targets]
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise _no_example(where, "has targets that are no texts")
        return Kind.answer, Example(where, parts, targets=tuple(answers))
    label = _field(record, "label")
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        raise _no_example(where, "has choices that are no list of texts")
    if not choices or not all(each.strip() for each in choices):
        raise _no_example(where, "has an empty choice, or none")
    if label is None:
        raise _no_example(where, "has no label")
    if isinstance(label, str) and label in choices:
        label = choices.index(label)
    if type(label) is not int or not 0 <= label < len(choices):
        problem = f"has the label {label!r}, which is neither the number of a choice, from 0, nor"
        raise _no_example(where, f"{problem} one of the choices")
    return Kind.choice, Example(where, parts, choices=tuple(choices), label=label)


def _parts(record: dict[str, Any], where: str, pattern: Pattern | None) -> tuple[Part, ...]:
    if pattern is None:
        inputs = _field(record, "inputs")
        if not isinstance(inputs, str):
            raise _no_example(where, "has no inputs")
        return (inputs,)
    try:
        return tuple(pattern.parts(record))
    except DataError as error:
        raise DataError(f"{where}: {error}", key=where, value=error.value) from error


def text_of(example: Example) -> str:
    """Return the text of an example whose perplexity is measured."""
    return "".join(part for part in example.parts if isinstance(part, str))


def _field(record: dict[str, Any], name: str) -> Any:
    return next((record[alias] for alias in ALIASES[name] if alias in record), None)


def _no_example(where: str, problem: str) -> DataError:
    return DataError(
        f"{where} {problem}.\n"
        "  An example has inputs, choices and label, or inputs and targets, or text.",
        key=where,
        value=problem,
    )


def read_benchmarks(config: RunConfig) -> list[Examples]:
    """Read the files of ``evaluation.tasks``.

    Raises:
        ConfigError: Two of them have one name, or the run's task writes no text.
        DataError: A file holds no examples.
    """
    files = [Path(file) for file in config.evaluation.tasks]
    if files:
        check_writes(config.corruption, run=config.run.name)
    names = [file.stem for file in files]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"evaluation.tasks has several files named {name}, whose metrics would have one"
                " name.\n"
                "  Rename one of them.",
                key="evaluation.tasks",
                value=name,
            )
    return [read_examples(file, limit=config.evaluation.task_examples) for file in files]
