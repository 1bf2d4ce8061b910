"""Log-probabilities of answers, in any layout: multiple choice, cloze, perplexity.

A context is read once; all its answers are then scored against its cached keys and values, several
contexts and answers side by side.

Letters: b rows, s tokens of a pass, n targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glm_dist.errors import DataError
from glm_dist.generate.decoder import Inputs, decoding
from glm_dist.generate.part_b import PartB, check_length
from glm_dist.model.stage import GLMStage


@dataclass(frozen=True)
class Question:
    """A context with a blank, and the answers that are scored in it."""

    context: list[int]
    """Part A, its mask included."""
    mask_index: int
    """Index of the blank's mask in the context."""
    answers: list[list[int]]
    """Tokens of each answer, without [sop]; [eop] only where it counts."""
    number: int = 0
    """Number of the blank in the context, which decides its [sop] in runs with sentinels."""
    skipped: int = 0
    """Leading tokens of each answer that are read and not scored."""


@dataclass(frozen=True)
class Score:
    """Score of one answer."""

    log_probability: float
    """Sum over its scored tokens, natural logarithm."""
    is_greedy: bool
    """True if each scored token is the likeliest one in its place."""
    num_tokens: int
    """Scored tokens."""


def score_answers(
    stage: GLMStage, questions: Sequence[Question], *, part_b: PartB, batch_size: int = 16
) -> list[list[Score]]:
    """Score every answer of every question. Collective over a replica.

    Args:
        stage: This rank's stage, in evaluation mode.
        questions: Contexts with their answers.
        part_b: How Part B is laid out.
        batch_size: Answers scored side by side; a question with more is scored by itself.

    Returns:
        A score for each answer of each question.

    Raises:
        DataError: A context is longer than the model's positions, or an answer than the block
            positions.
    """
    for question in questions:
        check_question(question, part_b)
    scores: list[list[Score]] = [[] for _ in questions]
    # Neighbours of similar length waste little on padding.
    order = sorted(range(len(questions)), key=lambda n: -len(questions[n].context))
    for numbers in _batches(order, questions, batch_size):
        found = _score_together(stage, [questions[n] for n in numbers], part_b)
        for number, of_question in zip(numbers, found, strict=True):
            scores[number] = of_question
    return scores


def check_question(question: Question, part_b: PartB) -> None:
    """Refuse a question for which there are no position ids.

    Raises:
        DataError: The context or an answer is too long, or an answer is empty.
    """
    check_length(question.context, part_b)
    longest = part_b.longest(question.context) + 1  # the last token is no input
    for answer in question.answers:
        if not 0 < len(answer) <= longest:
            raise DataError(
                f"An answer has {len(answer)} tokens; it needs 1 to {longest}.\n"
                "  Shorten it, or leave it out.",
                key="answer",
                value=len(answer),
                fix="",
            )


def _batches(
    order: Sequence[int], questions: Sequence[Question], batch_size: int
) -> list[list[int]]:
    batches: list[list[int]] = []
    room = 0
    for number in order:
        size = len(questions[number].answers)
        if size > room:
            batches.append([])
            room = batch_size
        batches[-1].append(number)
        room -= size
    return batches


def _score_together(
    stage: GLMStage, questions: Sequence[Question], part_b: PartB
) -> list[list[Score]]:
    pairs = [(n, a) for n, question in enumerate(questions) for a in question.answers]
    longest = max((len(answer) for _, answer in pairs), default=0)
    if not pairs:
        return [[] for _ in questions]
    tokens, positions, blocks, targets = [], [], [], []
    counts = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, (n, answer) in enumerate(pairs):
        question = questions[n]
        padding = longest - len(answer)
        places = [part_b.positions(question.mask_index, s) for s in range(1, len(answer) + 1)]
        tokens.append(
            [part_b.first(question.context, question.number), *answer[:-1]] + [0] * padding
        )
        positions.append([position for position, _ in places] + [0] * padding)
        blocks.append([block for _, block in places] + [0] * padding)
        targets.append(answer + [0] * padding)
        counts[row, question.skipped : len(answer)] = True
    with decoding(stage) as decoder:
        decoder.read([part_b.begin(question.context) for question in questions])
        decoder.select([n for n, _ in pairs])
        found = decoder.score(Inputs(tokens, positions, blocks), targets)
    sums = torch.where(counts, found.log_probability.double(), 0.0).sum(dim=1).tolist()
    greedy = (found.is_likeliest | ~counts).all(dim=1).tolist()
    scores: list[list[Score]] = [[] for _ in questions]
    for (n, _), total, is_greedy, row in zip(pairs, sums, greedy, counts, strict=True):
        scores[n].append(Score(total, is_greedy, int(row.sum())))
    return scores
