"""Text of a record: a field of a JSON object or of a Parquet row, nested ones by a dotted key."""

from collections.abc import Mapping

MOST_NAMES = 8
"""Fields that a message lists."""


def text_of(record: object, key: str) -> str | None:
    """Find the text of a record.

    Args:
        record: JSON object, or a Parquet row as one.
        key: Name of the field; ``meta.text`` is a field inside another, unless the record has a
            field of this very name.

    Returns:
        The text; None where there is none, which ``explain_missing`` explains.
    """
    found = find_field(record, key)
    if isinstance(found, bytes):  # some writers of Parquet do not declare a column as text
        try:
            found = found.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return found if isinstance(found, str) else None


def is_cut(text: str) -> bool:
    """Tell whether a text holds half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def explain_missing(record: object, key: str) -> str:
    """Say why a record has no text under a key, with the fields that it has."""
    if not isinstance(record, Mapping):
        return f"no object with fields, but {_kind(record)}"
    found = find_field(record, key)
    if found is not None:
        return f"field {key!r} is {_kind(found)}, no string"
    if key in record:
        return f"field {key!r} is null, no string"
    texts = list(_text_fields(record))
    if not texts:
        names = ", ".join(map(str, record)) or "none"
        return f"no field {key!r}; its fields are {names}, none of them a text"
    return f"no field {key!r}; texts are in {', '.join(texts[:MOST_NAMES])}"


def suggest_key(record: object) -> str | None:
    """Return the key of a record's longest text; None if it has no text."""
    if not isinstance(record, Mapping):
        return None
    texts = {key: text_of(record, key) or "" for key in _text_fields(record)}
    return max(texts, key=lambda key: len(texts[key]), default=None)


def find_field(record: object, key: str) -> object:
    """Return a field of a record; None where it is not there.

    Args:
        record: JSON object, or a Parquet row as one.
        key: As for ``text_of``.
    """
    if not isinstance(record, Mapping):
        return None
    if key in record or "." not in key:
        return record.get(key)
    first, _, rest = key.partition(".")
    return find_field(record.get(first), rest)


def _text_fields(record: Mapping[str, object], before: str = "") -> list[str]:
    """List the dotted keys of all strings."""
    names = []
    for name, value in record.items():
        if isinstance(value, str):
            names.append(f"{before}{name}")
        elif isinstance(value, Mapping):
            names += _text_fields(value, f"{before}{name}.")
    return names


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a string")
