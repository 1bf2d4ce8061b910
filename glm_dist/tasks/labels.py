"""Labels of examples as indices: of the task's answers, or of the example's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from glm_dist.tasks.readers.lines import no_example

REFERENCES = "answers"
"""Field of an example that may list all of its right answers."""


def references_of(fields: Mapping[str, Any], *, choices: str) -> tuple[str, ...]:
    """Return the right answers that an example lists, of which the best counts.

    Args:
        fields: Of the example. One of this name that is no list of texts has another meaning in
            the user's file.
        choices: Field that lists the answers to choose from; empty: they are the task's.
    """
    found = fields.get(REFERENCES)
    is_listed = isinstance(found, list) and all(isinstance(e, str | int | float) for e in found)
    return tuple(map(str, found)) if is_listed and found and choices != REFERENCES else ()


def index_of_label(value: Any, labels: Sequence[str], name: str, where: str) -> int:
    """Return the index of a label among those of the task.

    Args:
        value: As the file has it.
        labels: Of the task.
        name: Field that holds it.
        where: File and line.

    Raises:
        DataError: It is missing or unknown.
    """
    if value is None:
        raise no_example(where, f"has no label in {name!r} (task.data.label)")
    written = str(value).lower() if isinstance(value, bool) else str(value)
    if written not in labels:
        raise no_example(
            where,
            f"has the label {written!r} in {name!r}, which is not among task.answers:"
            f" {', '.join(labels)}",
            advice="Add it to task.answers, or correct the example.",
        )
    return labels.index(written)


def index_of_choice(value: Any, choices: Sequence[str], name: str, where: str) -> int:
    """Return the index of the right answer among those of the example.

    Args:
        value: As the file has it: an index, or the answer itself.
        choices: Answers of the example.
        name: Field that holds it.
        where: File and line.

    Raises:
        DataError: It is neither.
    """
    if value is None:
        raise no_example(where, f"has no label in {name!r} (task.data.label)")
    if isinstance(value, str) and value in choices:
        return list(choices).index(value)
    if type(value) is int and 0 <= value < len(choices):
        return value
    problem = (
        f"has the label {value!r} in {name!r}, which is neither the index of an answer, from 0,"
    )
    raise no_example(where, f"{problem} nor one of its {len(choices)} answers")
