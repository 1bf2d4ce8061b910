"""The likeliest answers of a blank with their probabilities, by beam search.

An answer's probability is the product of those of its tokens and of the end of the blank, among the
tokens that may stand in text. The answers found are the likeliest of those that the beam reaches; a
wider beam finds no less likely ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glm_dist.generate.cache import cached_attention
from glm_dist.generate.infill import PartB, check_length, next_logits, read_context
from glm_dist.model.stage import GLMStage

BEAM_WIDTH = 16
"""Unfinished answers that are followed, where fewer candidates are asked for."""


@dataclass(frozen=True)
class Candidate:
    """One answer of a blank."""

    tokens: tuple[int, ...]
    """Without [sop] and [eop]."""
    log_probability: float

    @property
    def probability(self) -> float:
        """Probability of exactly this answer, 0 to 1."""
        return math.exp(self.log_probability)


@torch.no_grad()
def find_candidates(
    stage: GLMStage,
    context: Sequence[int],
    *,
    part_b: PartB,
    mask_indices: Sequence[int],
    blank: int,
    count: int,
    max_tokens: int,
    banned: Sequence[int] = (),
) -> list[Candidate]:
    """Find the likeliest answers of one blank; other blanks of the context stay open.

    Args:
        stage: This rank's stage, in evaluation mode; every rank of a replica calls alike.
        context: Token ids of Part A, mask tokens included.
        part_b: How Part B is laid out.
        mask_indices: Index of each blank's mask.
        blank: Number of the blank, from 0.
        count: Answers to find, at least 1.
        max_tokens: Longest answer; longer ones have no candidate.
        banned: Token ids that no answer holds.

    Returns:
        At most ``count`` answers, the likeliest first.

    Raises:
        DataError: The context is longer than the model's positions.
    """
    check_length(context, part_b)
    stops = sorted({part_b.special.eop, part_b.special.eos})
    never = sorted(set(banned) - set(stops))
    width = max(count, BEAM_WIDTH)
    found: list[Candidate] = []
    beam = [Candidate((), 0.0)]
    with cached_attention(stage) as select:
        read_context(stage, context)
        for step in range(1, min(max_tokens, part_b.longest_answer - 1) + 2):
            inputs = [answer.tokens[-1] if answer.tokens else part_b.sop(blank) for answer in beam]
            logits = next_logits(stage, inputs, *part_b.positions(mask_indices[blank], step))
            logits[:, never] = float("-inf")
            scores = logits.double().log_softmax(dim=1)  # [b, v]
            scores += torch.tensor([[answer.log_probability] for answer in beam])
            ends = scores[:, stops].logsumexp(dim=1).tolist()
            found += [Candidate(a.tokens, end) for a, end in zip(beam, ends, strict=True)]
            found = sorted(found, key=lambda answer: -answer.log_probability)[:count]
            scores[:, stops] = float("-inf")
            best = scores.flatten().topk(min(width, scores.numel()))
            is_possible = best.values > float("-inf")
            places = best.indices[is_possible]
            rows, tokens = places // scores.size(1), places % scores.size(1)
            pairs = zip(rows.tolist(), tokens.tolist(), best.values.tolist(), strict=False)
            beam = [Candidate((*beam[row].tokens, token), score) for row, token, score in pairs]
            # An answer gets less likely with every token.
            if not beam or (
                len(found) == count and beam[0].log_probability <= found[-1].log_probability
            ):
                break
            select(rows.to(next(stage.parameters()).device))
    return found
