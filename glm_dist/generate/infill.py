"""Filling every blank of texts, left to right (official interactive generation, GLM 4f61ed7).

The context is read once in both directions. Each blank then starts from [sop] at its mask token's
position and grows token by token; later blanks see the answers of earlier ones. Of an answer that
``max_tokens`` cuts they do not see the last token, which is never read, as in the official code.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from glm_dist.generate.decoder import Inputs, decoding
from glm_dist.generate.draw import next_token, penalize
from glm_dist.generate.part_b import PartB, check_length
from glm_dist.generate.prompt import Prompt
from glm_dist.generate.sampling import GenerationOptions
from glm_dist.model.stage import GLMStage


@dataclass(frozen=True)
class Rules:
    """Options of writing answers, and tokens that none of them holds."""

    options: GenerationOptions
    banned: Sequence[int] = ()
    """Token ids that are never drawn; the official code bans none."""
    ends: Callable[[Sequence[int]], bool] = lambda tokens: False
    """Tells if an answer holds a stop string."""

    def forbid(self, logits: torch.Tensor, part_b: PartB, *, num_tokens: int) -> None:
        """Make impossible what may not come next, in place.

        Args:
            logits: [v] or [b, v].
            part_b: Tells what ends an answer.
            num_tokens: Tokens of the answer so far.
        """
        stops = part_b.stops
        never = set(self.banned) - set(stops)
        if num_tokens < self.options.min_tokens:
            never |= set(stops)
        logits[..., sorted(never)] = float("-inf")


class Written(NamedTuple):
    """A new token of an answer."""

    text: int
    """Number of the text."""
    blank: int
    """Number of the blank in it."""
    token: int


def fill_blanks(
    stage: GLMStage, prompts: Sequence[Prompt], *, part_b: PartB, rules: Rules
) -> list[list[list[int]]]:
    """Generate the answer of every blank of texts, all texts side by side.

    Args:
        stage: This rank's stage, in evaluation mode; every rank of a replica calls alike.
        prompts: Texts with their blanks.
        part_b: How Part B is laid out.
        rules: How answers are written.

    Returns:
        Tokens of each answer, without [sop] and [eop], for each blank of each text.

    Raises:
        DataError: A context is longer than the model's positions.
    """
    answers: list[list[list[int]]] = [[[] for _ in prompt.mask_indices] for prompt in prompts]
    for text, blank, token in write_answers(stage, prompts, part_b=part_b, rules=rules):
        answers[text][blank].append(token)
    return answers


def write_answers(
    stage: GLMStage, prompts: Sequence[Prompt], *, part_b: PartB, rules: Rules
) -> Iterator[Written]:
    """Generate the answers of texts and yield every token as it comes; see ``fill_blanks``."""
    for prompt in prompts:
        check_length(prompt.tokens, part_b)
    writers = [_Writer(prompt, part_b, rules) for prompt in prompts]
    active = [n for n, writer in enumerate(writers) if not writer.is_done]
    with decoding(stage) as decoder:
        if active:
            decoder.read([part_b.begin(prompts[n].tokens) for n in active])
        while active:
            inputs = [writers[n].input() for n in active]
            logits = decoder.step(Inputs(*zip(*inputs, strict=True)))
            for n, row in zip(active, logits, strict=True):
                blank = writers[n].blank
                token = writers[n].take(row)
                if token is not None:
                    yield Written(n, blank, token)
            going_on = [row for row, n in enumerate(active) if not writers[n].is_done]
            if 0 < len(going_on) < len(active):
                decoder.select(going_on)
            active = [active[row] for row in going_on]


class _Writer:
    """Blanks of one text while they are filled."""

    def __init__(self, prompt: Prompt, part_b: PartB, rules: Rules) -> None:
        self.blank = 0
        """Number of the blank that is being filled."""
        self._prompt = prompt
        self._part_b = part_b
        self._rules = rules
        self._generator = torch.Generator().manual_seed(rules.options.seed % 2**64)
        self._used = set(prompt.tokens) - {part_b.special.cls, *part_b.special.masks}
        self._length = min(rules.options.max_tokens, part_b.longest(prompt.tokens))
        self._answer: list[int] = []
        self._token = part_b.first(prompt.tokens, 0)

    @property
    def is_done(self) -> bool:
        """Return True if no blank is left."""
        return self.blank == len(self._prompt.mask_indices)

    def input(self) -> tuple[int, int, int]:
        """Return the next input and its position ids."""
        mask_index = self._prompt.mask_indices[self.blank]
        return self._token, *self._part_b.positions(mask_index, len(self._answer) + 1)

    def take(self, logits: torch.Tensor) -> int | None:
        """Choose the token that follows, from its logits [v]; None at the end of an answer."""
        sampling = self._rules.options.sampling
        penalize(logits, self._used, sampling.repetition_penalty)
        self._rules.forbid(logits, self._part_b, num_tokens=len(self._answer))
        token = next_token(logits, sampling, generator=self._generator)
        if token in self._part_b.stops:
            self._close()
            return None
        self._token = token
        self._answer.append(token)
        self._used.add(token)
        if len(self._answer) == self._length or self._rules.ends(self._answer):
            self._close()
        return token

    def _close(self) -> None:
        self.blank += 1
        self._answer = []
        self._token = self._part_b.first(self._prompt.tokens, self.blank)
