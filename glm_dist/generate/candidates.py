"""The likeliest answers of a blank with their probabilities.

An answer's probability is the product of those of its tokens and of the end of the blank, among the
tokens that may stand in text. The answers found are the likeliest of those that the beams reach;
more beams find no less likely ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glm_dist.generate.decoder import Inputs, decoding
from glm_dist.generate.infill import Rules
from glm_dist.generate.part_b import PartB, check_length
from glm_dist.generate.prompt import Prompt
from glm_dist.model.stage import GLMStage

BEAMS = 16
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


def find_candidates(
    stage: GLMStage, prompt: Prompt, *, part_b: PartB, rules: Rules, blank: int, count: int
) -> list[Candidate]:
    """Find the likeliest answers of one blank; other blanks of the text stay open.

    Args:
        stage: This rank's stage, in evaluation mode; every rank of a replica calls alike.
        prompt: Text with its blanks.
        part_b: How Part B is laid out.
        rules: Lengths and forbidden tokens; answers that are not finished by then are left out.
        blank: Number of the blank, from 0.
        count: Answers to find, at least 1.

    Returns:
        At most ``count`` answers, the likeliest first.

    Raises:
        DataError: The context is longer than the model's positions.
    """
    check_length(prompt.tokens, part_b)
    longest = min(rules.options.max_tokens, part_b.longest(prompt.tokens) - 1)
    mask_index = prompt.mask_indices[blank]
    first = part_b.first(prompt.tokens, blank)
    found: list[Candidate] = []
    beams = [Candidate((), 0.0)]
    with decoding(stage) as decoder:
        decoder.read([part_b.begin(prompt.tokens)])
        for step in range(1, longest + 2):
            position, block = part_b.positions(mask_index, step)
            tokens = [beam.tokens[-1] if beam.tokens else first for beam in beams]
            logits = decoder.step(Inputs(tokens, [position] * len(beams), [block] * len(beams)))
            rules.forbid(logits, part_b, num_tokens=step - 1)
            scores = logits.double().log_softmax(dim=1)  # [b, v]
            scores += torch.tensor([[beam.log_probability] for beam in beams])
            ends = scores[:, part_b.stops].logsumexp(dim=1).tolist()
            found += [Candidate(beam.tokens, end) for beam, end in zip(beams, ends, strict=True)]
            found = _best(found, count)
            scores[:, part_b.stops] = float("-inf")
            beams, parents = _continued(beams, scores, max(count, BEAMS))
            # An answer gets less likely with every token.
            bound = found[-1].log_probability if len(found) == count else -math.inf
            if not beams or beams[0].log_probability <= bound:
                break
            decoder.select(parents)
    return found


def _best(found: Sequence[Candidate], count: int) -> list[Candidate]:
    possible = [answer for answer in found if answer.log_probability > -math.inf]
    return sorted(possible, key=lambda answer: -answer.log_probability)[:count]


def _continued(
    beams: Sequence[Candidate], scores: torch.Tensor, width: int
) -> tuple[list[Candidate], list[int]]:
    """Return the likeliest continuations, and the beam that each continues."""
    best = scores.flatten().topk(min(width, scores.numel()))
    continued, parents = [], []
    for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        parent, token = divmod(place, scores.size(1))
        if score > -math.inf:
            continued.append(Candidate((*beams[parent].tokens, token), score))
            parents.append(parent)
    return continued, parents
