"""Borders of stored documents: [CLS] opens each, the end token closes it, neither stands inside.

Rows take documents apart by these tokens. A corpus of another tool may lack them, and one that was
prepared with an unsuitable tokenizer may hold them inside documents.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.corpus.indexed import IndexedTokens
from glm_dist.data.tokenizer.special_tokens import SpecialTokens

DOCUMENTS_AT_A_TIME = 4096
SAMPLE = 256
"""Documents that are looked at when a corpus is opened."""


def border_tokens(fingerprint: str) -> tuple[int, int] | None:
    """Read the ids that open and close documents out of a tokenizer's fingerprint."""
    found = re.search(r" cls=(\d+) eos=(\d+) ", fingerprint)
    return None if found is None else (int(found[1]), int(found[2]))


def broken_borders(corpus: IndexedTokens, *, cls: int, eos: int) -> Iterator[str]:
    """Describe the documents of a corpus that do not open or close as they must.

    Args:
        corpus: Opened; every token is read.
        cls: Id that opens documents.
        eos: Id that closes them.
    """
    counts = {"do not open with [CLS]": 0, "do not close with the end token": 0}
    counts["hold [CLS] or the end token inside"] = 0
    first = dict.fromkeys(counts, -1)
    for begin in range(0, corpus.num_documents, DOCUMENTS_AT_A_TIME):
        end = min(begin + DOCUMENTS_AT_A_TIME, corpus.num_documents)
        offsets = corpus.document_offsets(begin, end)
        starts, lasts = offsets[:-1], offsets[1:] - 1
        kept = lasts >= starts  # an empty document has no borders
        tokens = corpus.tokens[offsets[0] : offsets[-1]]
        starts, lasts = starts[kept] - offsets[0], lasts[kept] - offsets[0]
        numbers = begin + np.flatnonzero(kept)
        is_border = (tokens == cls) | (tokens == eos)
        is_border[starts] = is_border[lasts] = False
        inside = np.unique(starts.searchsorted(np.flatnonzero(is_border), side="right") - 1)
        wrong = (tokens[starts] != cls).nonzero()[0], (tokens[lasts] != eos).nonzero()[0], inside
        for what, places in zip(counts, wrong, strict=True):
            if len(places) and not counts[what]:
                first[what] = int(numbers[places[0]])
            counts[what] += len(places)
    for what, count in counts.items():
        if count:
            yield f"{count} documents {what}, the first is document {first[what]}"


def sampled_warnings(name: str, corpus: IndexedTokens, special: SpecialTokens) -> list[str]:
    """Look at a few documents of a corpus that a run opens.

    Args:
        name: Its key in ``data.corpora``.
        corpus: Opened.
        special: Special tokens of the run's tokenizer.

    Returns:
        What is wrong, in words; empty if nothing is.
    """
    numbers = {corpus.num_documents * n // SAMPLE for n in range(SAMPLE)}
    documents = [
        corpus.document(number) for number in sorted(numbers) if number < corpus.num_documents
    ]
    documents = [document for document in documents if len(document)]
    open_ended = sum(int(document[-1]) != special.eos for document in documents)
    control = np.array([special.cls, special.eos, special.mask, special.sop, special.eop])
    spoilt = sum(_holds(document[1:-1], control) for document in documents)
    warnings = []
    if open_ended:
        warnings.append(
            f"data.corpora.{name}: {open_ended} of {len(documents)} documents looked at do not end"
            f" with the end token (id {special.eos}), so rows run over their borders; prepare the"
            " corpus with glm-dist prepare, or with --append-eod of Megatron's tools"
        )
    if spoilt:
        warnings.append(
            f"data.corpora.{name}: {spoilt} of {len(documents)} documents looked at hold control"
            " tokens as text; prepare the corpus again"
        )
    return warnings


def _holds(body: NDArray[np.integer[Any]], control: NDArray[np.int64]) -> bool:
    return bool(np.isin(body, control).any())
