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
from glm_dist.generate.part_b import PartB
from glm_dist.generate.prompt import Prompt

OBJECTIVE = "task"
"""Name of these rows in metrics."""


def answer_row(
    prompt: Prompt,
    answer: Sequence[int],
    part_b: PartB,
    *,
    row_length: int | None = None,
    label: int = -1,
) -> Row:
    """Lay out a prompt with an answer in its last blank, and the loss on the answer.

    Args:
        prompt: Part A.
        answer: Targets: token ids, ``part_b.end`` included where the answer's end counts. [n]
        part_b: How the run lays answers out, by its objective.
        row_length: Length to pad to; None: no padding.
        label: Index of the example's right answer.

    Returns:
        The row. Blanks before the last one stay open.

    Raises:
        DataError: Both do not fit the row, or the answer is empty or longer than the block
            positions.
    """
    blanks, open_blanks = prompt.mask_indices, [()] * (len(prompt.mask_indices) - 1)
    answers = [*open_blanks, answer]
    return answers_row(prompt.tokens, blanks, answers, part_b, row_length=row_length, label=label)


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
        answers: Targets of each blank, as for ``answer_row``; empty: it stays open. [n]
        part_b: As for ``answer_row``.
        row_length: As for ``answer_row``.
        label: As for ``answer_row``.

    Raises:
        DataError: As for ``answer_row``.
    """
    longest = part_b.longest(context) + 1  # the last token is no input
    part_a = part_b.begin(context)
    tokens, targets = list(part_a.tokens), list(part_a.tokens)
    places = list(zip(part_a.positions, part_a.block_positions, strict=True))
    begin = len(tokens)
    for number, (mask_index, answer) in enumerate(zip(blanks, answers, strict=True)):
        if len(answer) > longest:
            raise _too_long(len(answer), longest)
        if not answer:
            continue
        tokens += [part_b.first(context, number), *answer[:-1]]
        targets += answer
        places += [part_b.positions(mask_index, step) for step in range(1, len(answer) + 1)]
    length = len(tokens) if row_length is None else row_length
    if begin == len(tokens) or len(tokens) > length:
        raise _does_not_fit(len(tokens), begin, length)
    positions, block_positions = np.array(places, np.int64).T
    loss_mask = np.zeros(length, np.bool_)
    loss_mask[begin : len(tokens)] = True
    pad = part_b.special.pad
    return Row(
        tokens=_padded(tokens, length, pad),
        positions=_padded(positions, length, 0),
        block_positions=_padded(block_positions, length, 0),
        targets=_padded(targets, length, pad),
        loss_mask=loss_mask,
        prefix_length=part_a.prefix_length,
        objective=OBJECTIVE,
        num_real_tokens=len(tokens),
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
        objective=OBJECTIVE,
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
        f"An answer has {found} tokens, more than the {longest} that the model has block positions"
        " for.\n"
        "  Shorten it, or set task.target_length.",
        key="answer",
        value=found,
        fix=f"task.target_length={longest}",
    )


def _does_not_fit(found: int, in_prompt: int, length: int) -> DataError:
    if found == in_prompt:
        return DataError(
            "An answer has no tokens.\n  Give each answer a text, or leave the example out.",
            key="answer",
            value="",
            fix="leave the example out",
        )
    return DataError(
        f"A prompt of {in_prompt} tokens and its answer of {found - in_prompt} do not fit a row of"
        f" {length}.\n"
        "  Raise task.max_length, or shorten the prompt.",
        key="task.max_length",
        value=length,
        fix=f"task.max_length={found}",
    )
