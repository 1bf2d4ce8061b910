"""Rows that train a model to answer prompts, laid out as generation writes the answers.

Letter: ``s`` row length.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.errors import DataError
from glm_dist.generate.part_b import ANSWER, PartB


def answers_row(
    context: Sequence[int],
    blanks: Sequence[int],
    answers: Sequence[Sequence[int]],
    part_b: PartB,
    *,
    row_length: int | None = None,
    label: int = -1,
) -> Row:
    """Lay out a prompt with answers in its blanks, and the loss on all of them.

    Args:
        context: Part A.
        blanks: Index of each blank's mask in the context, in the order of emission. [n]
        answers: Targets of each blank, ``part_b.end`` included where the answer's end counts;
            empty: the blank stays open. [n]
        part_b: How the run lays answers out, by its objective.
        row_length: Length to pad to; None: no padding.
        label: Index of the example's right answer.

    Raises:
        DataError: They do not fit the row, all of them are empty, or one is longer than the block
            positions.
    """
    longest = part_b.longest(context) + 1  # the last token is no input
    for answer in answers:
        if len(answer) > longest:
            raise _too_long(len(answer), longest)
    row = part_b.lay_out(context, blanks, answers)
    length = row.num_real_tokens if row_length is None else row_length
    if not row.loss_mask.any() or row.num_real_tokens > length:
        raise _does_not_fit(row.num_real_tokens, int(row.loss_mask.sum()), length)
    pad = part_b.special.pad
    return replace(
        row,
        tokens=_padded(row.tokens, length, pad),
        positions=_padded(row.positions, length, 0),
        block_positions=_padded(row.block_positions, length, 0),
        targets=_padded(row.targets, length, pad),
        loss_mask=np.pad(row.loss_mask, (0, length - row.num_real_tokens)),
        label=label,
    )


def context_row(
    tokens: Sequence[int], *, special: SpecialTokens, row_length: int | None, label: int
) -> Row:
    """Lay out a context that nothing is written after, for a classification head.

    Args:
        tokens: Part A.
        special: Ids of the special tokens.
        row_length: Length to pad to; None: no padding.
        label: The right class.

    Returns:
        The row. Its first token is marked as scored, since a row that scores nothing is a missing
        answer; the task decides what the head reads.
    """
    count = len(tokens)
    length = count if row_length is None else row_length
    return Row(
        tokens=_padded(tokens, length, special.pad),
        positions=_padded(np.arange(count), length, 0),
        block_positions=np.zeros(length, np.int64),
        targets=_padded(tokens, length, special.pad),
        loss_mask=np.arange(length) == 0,
        prefix_length=count,
        objective=ANSWER,
        num_real_tokens=count,
        label=label,
    )


def without_answer(row: Row) -> Row:
    """Return a row that stands for a missing answer of its example: nothing in it is scored."""
    return replace(row, loss_mask=np.zeros_like(row.loss_mask))


def _padded(
    values: Sequence[int] | NDArray[np.int64], length: int, padding: int
) -> NDArray[np.int64]:
    padded = np.full(length, padding, np.int64)
    padded[: len(values)] = values
    return padded


def _too_long(found: int, longest: int) -> DataError:
    return DataError(
        f"An answer has {found} tokens, more than the {longest} that the model has positions"
        " for.\n"
        "  Shorten it, or set task.target_length.",
        key="answer",
        value=found,
        fix=f"task.target_length={longest}",
    )


def _does_not_fit(found: int, in_answer: int, length: int) -> DataError:
    if in_answer == 0:
        return DataError(
            "An answer has no tokens.\n  Give each answer a text, or leave the example out.",
            key="answer",
            value="",
            fix="leave the example out",
        )
    return DataError(
        f"A prompt of {found - in_answer} tokens and its answer of {in_answer} do not fit a row of"
        f" {length}.\n"
        "  Raise task.max_length, or shorten the prompt.",
        key="task.max_length",
        value=length,
        fix=f"task.max_length={found}",
    )
