"""Losses of choosing between candidates, from their scores. Plain torch on whole tensors.

The losses are those of the official finetuning (GLM 4f61ed7), summed over examples; the step
divides by their number. ADAPET's loss (arXiv 2103.11955) has ``-log(1 - p)`` for a wrong candidate;
the official code, and so this one, has ``log p`` there, which has no lower bound.

Letters: e examples, c candidates of each.
"""

import torch

from glm_dist.config.schema import ChoiceLoss

MISSING_SCORE = -10_000.0
"""Score of a candidate that an example does not have: its probability is 0 in fp32."""


def candidate_scores(
    log_probability: torch.Tensor, num_tokens: torch.Tensor, *, length_penalty: float
) -> torch.Tensor:
    """Compute the scores of candidates.

    Args:
        log_probability: Sum over the tokens of each candidate [e, c].
        num_tokens: Tokens of each candidate [e, c]; 0 if the example does not have it.
        length_penalty: Exponent of the number of tokens that the sum is divided by; 0: no division.

    Returns:
        [e, c]; ``MISSING_SCORE`` for a candidate that the example does not have.
    """
    divisor = num_tokens.clamp(min=1).to(log_probability.dtype) ** length_penalty
    return (log_probability / divisor).where(num_tokens > 0, MISSING_SCORE)


def choice_loss(
    scores: torch.Tensor, labels: torch.Tensor, is_there: torch.Tensor, *, kind: ChoiceLoss
) -> torch.Tensor:
    """Sum the losses of examples.

    ==============  ==================================================================
    cross_entropy   ``-log softmax(s)[right]``
    hinge           sum over the others of ``max(0, 1 + s - s[right])``
    generative      ``-s[right]``
    mix             generative + cross_entropy
    adapet          ``-s[right]`` + sum of the other scores; missing ones do not count
    ==============  ==================================================================

    Args:
        scores: Scores s [e, c], or logits of classes.
        labels: Index of the right candidate [e]; -1: the example has no loss.
        is_there: False for missing candidates [e, c].
        kind: Loss of an example.

    Returns:
        The sum [] in fp64; 0 without labelled examples.
    """
    choices = torch.arange(scores.size(1), device=scores.device)
    right = choices == labels.unsqueeze(1)  # [e, c]
    right_score = scores.where(right, 0.0).sum(dim=1)  # [e]
    match kind:
        case ChoiceLoss.cross_entropy:
            losses = _cross_entropy(scores, right)
        case ChoiceLoss.hinge:
            margins = (1 + scores - right_score.unsqueeze(1)).clamp(min=0.0)
            losses = margins.where(~right, 0.0).sum(dim=1)
        case ChoiceLoss.generative:
            losses = -right_score
        case ChoiceLoss.mix:
            losses = _cross_entropy(scores, right) - right_score
        case ChoiceLoss.adapet:
            losses = scores.where(is_there & ~right, 0.0).sum(dim=1) - right_score
    return losses.where(labels >= 0, 0.0).double().sum()


def _cross_entropy(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return -scores.log_softmax(dim=1).where(right, 0.0).sum(dim=1)


def right_choices(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the number [] of examples whose right candidate has the highest score."""
    return (scores.argmax(dim=1) == labels).sum()
