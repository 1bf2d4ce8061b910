"""A pattern whose blank comes last, for runs that read from left to right and continue a text.

The rule: first comes what stands behind the blank, then what stands before it, then the answer. So
the words right before the blank still lead to the answer, and nothing of the pattern is lost but
punctuation and spaces right behind the blank. ``"{hypothesis}"? [MASK], "{premise}"`` becomes
``"{premise}" "{hypothesis}"?``, and ``{text} It was [MASK].`` becomes ``{text} It was``.
"""

import string
from collections.abc import Sequence

from glm_dist.config.patterns import Mark
from glm_dist.data.tokenizer.tokenizer import Tokenizer

CLOSING = string.whitespace + ".,;:!?)]}…。，；：！？）"
"""Characters right behind a blank that close its sentence or clause."""


def blank_last(parts: Sequence[str | Mark], tokenizer: Tokenizer) -> list[str | Mark]:
    """Move what stands behind the only blank of a pattern to its front, and take the blank out.

    Args:
        parts: Literal text, in which masks may be named, ``prompt.Data`` and marks.
        tokenizer: The run's.

    Returns:
        The parts in another order; the same parts if there is no blank, or more than one.
    """
    blanks = [
        (number, found)
        for number, part in enumerate(parts)
        if type(part) is str  # no data
        for found in tokenizer.named_tokens(part)
        if found.token in tokenizer.special.masks
    ]
    if len(blanks) != 1:
        return list(parts)
    ((number, found),) = blanks
    literal = str(parts[number])
    before, behind = literal[: found.begin], literal[found.end :]
    head = [*parts[:number], before.rstrip()]
    tail = [behind.lstrip(CLOSING), *parts[number + 1 :]]
    head, tail = ([part for part in side if part] for side in (head, tail))
    if head and tail:
        head[0] = _after_a_space(head[0])
    return [*tail, *head]


def _after_a_space(part: str | Mark) -> str | Mark:
    """Begin a part with a space, as the text of a pattern does between two words."""
    if isinstance(part, Mark) or part[:1].isspace():
        return part
    spaced = type(part)(f" {part}")
    if type(part) is not str:
        vars(spaced).update(vars(part))  # of data: how it is shortened
    return spaced
