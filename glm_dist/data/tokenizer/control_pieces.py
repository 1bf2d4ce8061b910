"""Control tokens that a vocabulary has already: found by name, and kept out of reach of text.

A ``tokenizer.json`` may match ``<s>`` or ``[MASK]`` in ordinary text, as an added token or as a
piece of its vocabulary. What GLM uses as a control token is renamed in both, so that a web page
about BERT puts no mask into a corpus.
"""

import json
from collections.abc import Callable, Collection
from typing import Any

PREFIX = "\U0010ffff"
"""A code point that is no character, so that no text holds a renamed piece."""


KNOWN = {
    "eos": ("<|endoftext|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>", "<cls>", "<bos>", "[BOS]", "<|begin_of_text|>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
    "sop": ("<|startofpiece|>", "<sop>"),
    "eop": ("<|endofpiece|>", "<eop>"),
    "gmask": ("[gMASK]",),
    "smask": ("[sMASK]",),
}
"""Pieces by the role they have in GLM, in order of preference."""


def find_control_pieces(id_of: Callable[[str], int | None]) -> dict[str, int]:
    """Find whichever control tokens a vocabulary happens to have.

    Args:
        id_of: Gives the id of a piece, None if there is none.

    Returns:
        Ids by role.
    """
    ids = {}
    for role, pieces in KNOWN.items():
        present = [found for piece in pieces if (found := id_of(piece)) is not None]
        if present:
            ids[role] = present[0]
    return ids


def hide_pieces(definition: str, pieces: Collection[str]) -> str:
    """Change a tokenizer so that it encodes no text to some of its pieces.

    Args:
        definition: Content of a ``tokenizer.json``.
        pieces: Pieces to hide; ids of the others stay.

    Returns:
        The changed content.
    """
    content: dict[str, Any] = json.loads(definition)
    for token in content.get("added_tokens") or []:  # without one, later ones get other ids
        token["content"] = _renamed(token["content"], pieces)
    content["post_processor"] = None  # may refer to them, and adds what is added here already
    model = content["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # Unigram: pieces and scores in the order of ids
        model["vocab"] = [[_renamed(piece, pieces), score] for piece, score in vocabulary]
    elif isinstance(vocabulary, dict):
        model["vocab"] = {_renamed(piece, pieces): n for piece, n in vocabulary.items()}
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, pieces)]
    return json.dumps(content)


def _renamed(piece: str, pieces: Collection[str]) -> str:
    return f"{PREFIX}{piece}" if piece in pieces else piece


def _makes(merge: str | list[str], pieces: Collection[str]) -> bool:
    """True for a merge that gives or takes a hidden piece."""
    parts = merge.split(" ", 1) if isinstance(merge, str) else merge
    return "".join(parts) in pieces or any(part in pieces for part in parts)
