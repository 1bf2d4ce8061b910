"""Last words of texts as rows of each objective, in the form that suits it best.

The word is scored given the text before it, a measure that needs no finetuning. No form scores an
end, since the text would go on.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from glm_dist.config.schema import PretrainingTask, RunConfig
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import DataError
from glm_dist.files import write_atomically
from glm_dist.generate.part_b import PartB
from glm_dist.tasks.readers.lines import json_objects, no_example
from glm_dist.tasks.rows import answers_row

FORMS = {
    PretrainingTask.blank_infilling: "a blank at the end, the word token by token after [sop]",
    PretrainingTask.causal_lm: "the word token by token after the text",
    PretrainingTask.masked_lm: "a [MASK] for each token at the end, filled from left to right;"
    " the number of tokens is shown",
    PretrainingTask.unilm: "a [MASK] for each token at the end, filled from left to right in the"
    " view of both sides; the number of tokens is shown",
    PretrainingTask.span_corruption: "a sentinel at the end, the word token by token after it",
}
"""Form of each objective, for the report."""

MOST_OVERHEAD = 3
"""Tokens of the longest form beside text and word: [CLS], sentinel, [sop]."""


@dataclass(frozen=True)
class LastWord:
    """A text and its last word."""

    where: str
    """File and line."""
    text: str
    word: str


@dataclass(frozen=True)
class WordScores:
    """Nats per word of a run."""

    nats: float
    low: float
    high: float
    """Ends of the 95 % interval over the words."""
    num_words: int
    form: str
    """Form in which the run was asked."""


def read_last_words(file: Path) -> list[LastWord]:
    """Read texts and their last words.

    Args:
        file: JSON lines with ``text`` and ``targets``, of which the first counts.

    Raises:
        DataError: The file is missing or empty, or a line lacks one of both.
    """
    found = []
    for where, fields in json_objects(file):
        text, targets = fields.get("text"), fields.get("targets")
        word = targets[0] if isinstance(targets, list) and targets else targets
        if not (isinstance(text, str) and isinstance(word, str) and text.strip() and word.strip()):
            raise no_example(where, "has no text in 'text', or no word in 'targets'")
        found.append(LastWord(where, text, word))
    if not found:
        raise DataError(f"{file} holds no texts.\n  Check the file.", key=str(file))
    return found


def word_rows(
    words: Sequence[LastWord], config: RunConfig, tokenizer: Tokenizer
) -> tuple[list[Row], list[int]]:
    """Lay last words out as a run's objective takes them.

    Args:
        words: Texts; the beginning of a long one is cut.
        config: Of the run; rows have its length.
        tokenizer: The run's.

    Returns:
        Rows, and for each the index of its word. The log-probability of a word is the sum over its
        rows: several where its tokens are filled in one by one.
    """
    part_b = PartB.of(config, tokenizer.special)
    length = config.batch.row_length
    rows, owners = [], []
    for number, each in enumerate(words):
        answer = tokenizer.encode_document(f" {each.word.strip()}")
        room = length - len(answer) - MOST_OVERHEAD
        context = tokenizer.encode_document(each.text.rstrip())[-room:]
        made = _rows(context, answer, config, part_b)
        rows += made
        owners += [number] * len(made)
    return rows, owners


def _rows(context: list[int], answer: list[int], config: RunConfig, part_b: PartB) -> list[Row]:
    special, corruption = part_b.special, config.corruption
    length = config.batch.row_length
    start = [special.cls, *context]
    if corruption.task is PretrainingTask.causal_lm:
        return [answers_row(start, [len(start) - 1], [answer], part_b, row_length=length)]
    trains_words = corruption.span_share > 0 or corruption.single_span_share > 0
    mask = special.mask if trains_words else special.gmask
    if corruption.task not in (PretrainingTask.masked_lm, PretrainingTask.unilm):
        return [answers_row([*start, mask], [len(start)], [answer], part_b, row_length=length)]
    rows = []
    for filled in range(len(answer)):
        shown = [*start, *answer[:filled], mask]
        rest, first = answer[filled:], len(shown) - 1
        row = answers_row(shown, [first], [rest], part_b, row_length=length)
        rows.append(replace(row, loss_mask=row.loss_mask & (np.arange(length) == first)))
    return rows


def write_scores(scores: WordScores, file: Path) -> None:
    """Write scores as JSON."""
    write_atomically(file, json.dumps(asdict(scores), indent=1) + "\n")


def read_scores(file: Path) -> WordScores:
    """Read what ``write_scores`` wrote."""
    return WordScores(**json.loads(file.read_text(encoding="utf-8")))
