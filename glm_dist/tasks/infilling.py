"""Words of a text that are hidden for infilling, neighbours in one blank."""

import random
from collections.abc import Sequence

from glm_dist.generate.prompt import Data, Part
from glm_dist.seeds import derive_seed
from glm_dist.tasks.readers.blanks import BLANK

Blanked = tuple[list[str], list[str]]
"""Text before, between and after the blanks [n + 1], and what they hide [n]."""


def hide_words(text: str, *, share: float, seed: int, draw: int) -> Blanked:
    """Hide random words of a text.

    Text without spaces, such as Chinese, is hidden character by character.

    Args:
        text: The text.
        share: Share of the words that is hidden, at least one.
        seed: Seed of the run.
        draw: Number of the draw.
    """
    space = space_of(text)
    words = text.split() if space else list(text.strip())
    number = min(len(words), max(1, int(len(words) * share)))
    rng = random.Random(derive_seed("infilling", seed, draw, text))
    return merged(words, sorted(rng.sample(range(len(words)), number)), space=space)


def space_of(text: str) -> str:
    """Return what stands between two words of a text; empty for text without spaces."""
    return " " if len(text.split()) > 1 else ""


def filled(pieces: Sequence[str], answers: Sequence[str], *, space: str) -> str:
    """Return a text with its blanks filled.

    Args:
        pieces: Text before, between and after the blanks. [n + 1]
        answers: What was written into them. [n]
        space: Between two words.
    """
    parts = [part for pair in zip(pieces, [*answers, ""], strict=True) for part in pair]
    return space.join(space.join(parts).split())


def first_half(text: str) -> str:
    """Return the first half of a text's words, or of the characters of its only word."""
    words = text.split()
    if len(words) > 1:
        return " ".join(words[: len(words) // 2])
    return text[: len(text) // 2]


def parts_of(pieces: Sequence[str]) -> list[Part]:
    """Return the parts of a prompt with blanks between pieces; empty pieces are left out."""
    parts: list[Part] = []
    for index, piece in enumerate(pieces):
        parts += ["[MASK]"] if index else []
        parts += [Data(piece)] if piece.strip() else []
    return parts


def merged(words: Sequence[str], hidden: Sequence[int], *, space: str = " ") -> Blanked:
    """Join words to pieces around blanks.

    Args:
        words: The text.
        hidden: Indices of the hidden words, in order.
        space: Between two words.
    """
    chosen = set(hidden)
    pieces: list[list[str]] = [[]]
    blanks: list[list[str]] = []
    for index, word in enumerate(words):
        if index not in chosen:
            pieces[-1].append(word)
            continue
        if index - 1 not in chosen:
            blanks.append([])
            pieces.append([])
        blanks[-1].append(word)
    return [space.join(piece) for piece in pieces], [space.join(blank) for blank in blanks]


def found_blanks(blanked: str, text: str) -> Blanked:
    """Split a text at the blanks that its file has.

    Args:
        blanked: The text with ``<blank>`` in it.
        text: The whole text, for what they hide.

    Returns:
        Pieces and hidden text; what is hidden is empty where it cannot be found.
    """
    pieces = [piece.strip() for piece in blanked.split(BLANK)]
    hidden = []
    begin = len(pieces[0]) if text.startswith(pieces[0]) else 0
    for piece in pieces[1:]:
        end = text.find(piece, begin) if piece else len(text)
        hidden.append(text[begin:end].strip() if end >= 0 else "")
        begin = max(begin, end) + len(piece)
    return pieces, hidden
