"""Scores of answers against whole forward passes, one answer at a time, without a cache."""

import math

import pytest
import torch

from glm_dist.errors import DataError
from glm_dist.generate.part_b import PartB
from glm_dist.generate.score import Question, Score, score_answers
from glm_dist.model.batch import StageBatch
from glm_dist.parallel.layout import Layout
from tests.generate.test_infill import SPECIAL, model
from tests.ranks import run_ranks

PART_B = PartB(SPECIAL, max_position=31)


def questions() -> list[Question]:
    """Questions of different lengths, with one to five answers, some of which begin unscored."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(10, 100, (count,), generator=generator).tolist()

    found = []
    for number in range(9):
        context = tokens(4 + number)
        context[number % 4] = SPECIAL.mask
        answers = [tokens(1 + (number + n) % 5) for n in range(1 + number % 5)]
        found.append(Question(context, number % 4, answers, skipped=int(number == 4)))
    found[4].answers.append([*tokens(3), SPECIAL.eop])
    return found


@torch.no_grad()
def by_whole_passes(stage: torch.nn.Module, question: Question, answer: list[int]) -> Score:
    tokens = [*question.context, SPECIAL.sop, *answer[:-1]]
    begin, count = len(question.context), len(answer)
    batch = StageBatch(
        tokens=torch.tensor([tokens]),
        positions=torch.tensor([[*range(begin), *[question.mask_index] * count]]),
        block_positions=torch.tensor([[0] * begin + list(range(1, count + 1))]),
        prefix_length=torch.tensor([begin]),
        target_index=torch.arange(begin, begin + count),
        target_ids=torch.tensor(answer),
    )
    logits = stage.logits(batch)[question.skipped :]
    kept = answer[question.skipped :]
    found = logits.log_softmax(dim=1)[range(len(kept)), kept].sum()
    return Score(float(found), logits.argmax(dim=1).tolist() == kept, len(kept))


def check_scores(layout: Layout, batch_size: int) -> list[list[Score]]:
    stage = model(layout=layout)
    found = score_answers(stage, questions(), part_b=PART_B, batch_size=batch_size)
    if layout.world_size == 1:
        for question, scores in zip(questions(), found, strict=True):
            for answer, score in zip(question.answers, scores, strict=True):
                expected = by_whole_passes(stage, question, answer)
                assert score.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
                assert (score.is_greedy, score.num_tokens) == (
                    expected.is_greedy,
                    expected.num_tokens,
                )
    return found


def flat(scores: list[list[Score]]) -> list[float]:
    return [score.log_probability for of_question in scores for score in of_question]


def test_scores_equal_whole_passes_in_every_layout_and_batch() -> None:
    (alone,) = run_ranks(check_scores, Layout(), 1, world_size=1)
    (batched,) = run_ranks(check_scores, Layout(), 7, world_size=1)
    assert flat(batched) == pytest.approx(flat(alone), abs=1e-5)
    for layout in (Layout(tensor_parallel_size=2), Layout(pipeline_parallel_size=2)):
        for found in run_ranks(check_scores, layout, 7, world_size=2):
            assert flat(found) == pytest.approx(flat(alone), abs=1e-5)


def check_greedy_and_probabilities() -> None:
    stage = model()
    context = [1, 20, SPECIAL.mask, 22, SPECIAL.eos]
    every = [[token] for token in range(100)]
    (scores,) = score_answers(stage, [Question(context, 2, every)], part_b=PART_B)
    assert sum(math.exp(score.log_probability) for score in scores) == pytest.approx(1, abs=1e-5)
    best = max(range(100), key=lambda token: scores[token].log_probability)
    assert [score.is_greedy for score in scores] == [token == best for token in range(100)]
    for answers in ([[]], [[20] * 32]):
        with pytest.raises(DataError, match="tokens; it needs 1 to 31"):
            score_answers(stage, [Question(context, 2, answers)], part_b=PART_B)


def test_probabilities_add_up_and_the_likeliest_is_greedy() -> None:
    run_ranks(check_greedy_and_probabilities, world_size=1)
