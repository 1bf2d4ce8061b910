"""JSON that every reader takes."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(content: object, *, indent: int | None = None) -> str:
    """Write JSON whose numbers are standard and whose text is Unicode.

    Args:
        content: Mappings, lists, tuples, texts, numbers, None. A number that is not finite is
            written as null, which JSON has for it.
        indent: Spaces of a level; None: one line.

    Returns:
        Text without an end of line.
    """
    plain = _without_non_finite(content)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return json.dumps(plain, allow_nan=False, indent=indent)
    return text


def _without_non_finite(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
