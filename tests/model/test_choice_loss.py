"""Losses of choices against sums written out, example by example, in fp64."""

import math

import pytest
import torch

from glm_dist.config.schema import ChoiceLoss
from glm_dist.model.choice_loss import (
    MISSING_SCORE,
    candidate_scores,
    choice_loss,
    right_choices,
)

# Three candidates, then two, then one; the last example has no label.
SCORES = [[-1.0, -2.5, 0.25], [-30.0, -4.0, MISSING_SCORE], [MISSING_SCORE, -7.0, MISSING_SCORE]]
LABELS = [2, 0, 1]


def written_out(
    scores: torch.Tensor, label: int, there: list[int], kind: ChoiceLoss
) -> torch.Tensor:
    """Loss of one example, over the candidates that are there."""
    right, wrong = scores[label], [scores[i] for i in there if i != label]
    entropy = torch.stack([scores[i] for i in there]).exp().sum().log() - right
    zero = 0 * right
    return {
        ChoiceLoss.cross_entropy: entropy,
        ChoiceLoss.hinge: zero + sum(torch.relu(1 + s - right) for s in wrong),
        ChoiceLoss.generative: -right,
        ChoiceLoss.mix: entropy - right,
        ChoiceLoss.adapet: -right + sum(wrong),
    }[kind]


@pytest.mark.parametrize("kind", list(ChoiceLoss))
def test_loss_and_gradient_equal_those_written_out(kind: ChoiceLoss) -> None:
    scores = torch.tensor([*SCORES, [0.5, 0.5, 9.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([*LABELS, -1])
    is_there = scores.detach() != MISSING_SCORE
    expected = sum(
        written_out(scores[i], LABELS[i], is_there[i].nonzero().flatten().tolist(), kind)
        for i in range(len(LABELS))
    )
    (gradient,) = torch.autograd.grad(expected, scores)

    found = choice_loss(scores, labels, is_there, kind=kind)
    (found_gradient,) = torch.autograd.grad(found, scores)

    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(found_gradient, gradient, rtol=0, atol=1e-14)


def test_hinge_of_numbers() -> None:
    scores = torch.tensor([[-1.0, -0.5, -3.0, -1.25]])
    # max(0, 1 - 0.5 + 1) + max(0, 1 - 3 + 1) + max(0, 1 - 1.25 + 1) = 1.5 + 0 + 0.75
    loss = choice_loss(
        scores, torch.tensor([0]), torch.ones(1, 4, dtype=torch.bool), kind=ChoiceLoss.hinge
    )
    assert float(loss) == 2.25


@pytest.mark.parametrize("kind", list(ChoiceLoss))
def test_a_batch_without_labels_has_loss_and_gradient_zero(kind: ChoiceLoss) -> None:
    scores = torch.full((2, 3), MISSING_SCORE, requires_grad=True)
    there = torch.zeros(2, 3, dtype=torch.bool)
    loss = choice_loss(scores, torch.tensor([-1, -1]), there, kind=kind)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_a_long_candidate_is_divided_by_its_length_to_the_penalty() -> None:
    sums = torch.tensor([[-6.0, -2.0, 0.0]], requires_grad=True)
    tokens = torch.tensor([[4, 1, 0]])

    plain, half, whole = (
        candidate_scores(sums, tokens, length_penalty=penalty)[0].tolist()
        for penalty in (0.0, 0.5, 1.0)
    )

    assert plain == [-6.0, -2.0, MISSING_SCORE]
    assert half == [-3.0, -2.0, MISSING_SCORE]  # -6 / sqrt(4)
    assert whole == [-1.5, -2.0, MISSING_SCORE]
    candidate_scores(sums, tokens, length_penalty=1.0).sum().backward()
    assert sums.grad.tolist() == [[0.25, 1.0, 0.0]]


def test_confident_scores_lose_no_digits() -> None:
    # fp32 has steps of 3e-5 near -300: the difference of two such sums would be 0 or 3e-5.
    scores = torch.tensor([[-300.0, -312.0]])
    there = torch.ones(1, 2, dtype=torch.bool)
    loss = choice_loss(scores, torch.tensor([0]), there, kind=ChoiceLoss.cross_entropy)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-12)), rel=1e-2)


def test_examples_without_labels_are_no_right_choices() -> None:
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    assert int(right_choices(scores, torch.tensor([1, 1, -1]))) == 1
