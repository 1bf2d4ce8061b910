"""Beam search for the answers of blanks, several texts side by side (official rules, GLM 4f61ed7).

Each step looks at the 2 k likeliest continuations of a text's k beams. One that ends its answer
counts if it is among the first k; the first k others are the beams of the next step. Finished
answers are compared by log-probability / tokens ^ penalty. A text is done when k answers are
finished and no beam's own value is above the worst of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from glm_dist.generate.context import Context
from glm_dist.generate.decoder import Inputs, decoding
from glm_dist.generate.infill import Rules
from glm_dist.generate.part_b import PartB, check_length
from glm_dist.generate.prompt import Prompt
from glm_dist.generate.sampling import BeamSearch
from glm_dist.model.stage import GLMStage


@dataclass(frozen=True)
class Hypothesis:
    """One answer of a blank."""

    tokens: tuple[int, ...]
    """Without [sop] and [eop]."""
    log_probability: float
    """Of its tokens, and of its end if it has one."""

    def value(self, penalty: float) -> float:
        """Return what answers are compared by."""
        length = max(1, len(self.tokens))
        return self.log_probability / float(length**penalty)


def beam_search(
    stage: GLMStage, prompts: Sequence[Prompt], *, part_b: PartB, rules: Rules, search: BeamSearch
) -> list[list[list[int]]]:
    """Find the best answer of every blank, left to right; later blanks see the best earlier ones.

    Args:
        stage: This rank's stage, in evaluation mode; every rank of a replica calls alike.
        prompts: Texts with their blanks.
        part_b: How Part B is laid out.
        rules: Lengths and forbidden tokens.
        search: Options.

    Returns:
        Tokens of each answer, without [sop] and [eop], for each blank of each text.

    Raises:
        DataError: A context is longer than the model's positions.
    """
    for prompt in prompts:
        check_length(prompt.tokens, part_b)
    contexts = [part_b.begin(prompt.tokens) for prompt in prompts]
    answers: list[list[list[int]]] = [[] for _ in prompts]
    for blank in range(max((len(prompt.mask_indices) for prompt in prompts), default=0)):
        open_texts = [n for n, prompt in enumerate(prompts) if blank < len(prompt.mask_indices)]
        texts = [_Text(blank, prompts[n], part_b, rules, search) for n in open_texts]
        _search(stage, [contexts[n] for n in open_texts], texts)
        for n, text in zip(open_texts, texts, strict=True):
            best = list(text.best().tokens)
            answers[n].append(best)
            # The last token of an answer that is cut is never read; see ``infill.py``.
            read = [text.first, *best[: text.longest - 1]]
            places = [text.positions(step) for step in range(1, len(read) + 1)]
            positions, blocks = zip(*places, strict=True)
            contexts[n] = contexts[n].extended(read, positions, blocks)
    return answers


def _search(stage: GLMStage, contexts: Sequence[Context], texts: "Sequence[_Text]") -> None:
    """Run the beams of all texts until each is done."""
    with decoding(stage) as decoder:
        decoder.read(contexts)
        active = list(texts)
        while active:
            rows = [(text, beam) for text in active for beam in text.beams]
            places = [text.positions(text.step) for text, _ in rows]
            positions, blocks = zip(*places, strict=True)
            inputs = [beam.tokens[-1] if beam.tokens else text.first for text, beam in rows]
            logits = decoder.step(Inputs(inputs, positions, blocks))
            parents: list[int] = []
            first = 0
            for text in active:
                count = len(text.beams)
                chosen = text.take(logits[first : first + count])
                parents += [first + parent for parent in chosen]
                first += count
            active = [text for text in active if not text.is_done]
            if active:
                decoder.select(parents)


@dataclass
class _Text:
    """The beams of one blank."""

    blank: int
    prompt: Prompt
    part_b: PartB
    rules: Rules
    search: BeamSearch
    beams: list[Hypothesis] = field(default_factory=lambda: [Hypothesis((), 0.0)])
    finished: list[Hypothesis] = field(default_factory=list)
    step: int = 1
    is_done: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return min(self.rules.options.max_tokens, self.part_b.longest(self.prompt.tokens))

    @property
    def first(self) -> int:
        """First input of the blank."""
        return self.part_b.first(self.prompt.tokens, self.blank)

    def positions(self, step: int) -> tuple[int, int]:
        """Return both position ids of an input."""
        return self.part_b.positions(self.prompt.mask_indices[self.blank], step)

    def best(self) -> Hypothesis:
        """Return the finished answer with the largest value."""
        penalty = self.search.length_penalty
        nothing = Hypothesis((), 0.0)
        return max(self.finished, key=lambda answer: answer.value(penalty), default=nothing)

    def take(self, logits: torch.Tensor) -> list[int]:
        """Continue the beams by a token each.

        Args:
            logits: Of the tokens after each beam [k, v].

        Returns:
            Beam that each of the next ones continues; none if the text is done.
        """
        scores = self._scores(logits)
        count = min(2 * self.search.beams, scores.numel())
        best = scores.flatten().topk(count)
        next_beams: list[Hypothesis] = []
        parents: list[int] = []
        for rank, (place, score) in enumerate(
            zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ):
            parent, token = divmod(place, scores.size(1))
            if score == float("-inf") or len(next_beams) == self.search.beams:
                break
            if token in self.part_b.stops:
                if rank < self.search.beams:
                    self._finish(Hypothesis(self.beams[parent].tokens, score))
                continue
            continued = Hypothesis((*self.beams[parent].tokens, token), score)
            if self.rules.ends(continued.tokens):
                self._finish(continued)
                continue
            next_beams.append(continued)
            parents.append(parent)
        self.beams, self.step = next_beams, self.step + 1
        self._check_done(best.values[0].item())
        return [] if self.is_done else parents

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all continuations [k, v]."""
        self.rules.forbid(logits, self.part_b, num_tokens=self.step - 1)
        scores = logits.log_softmax(dim=1)
        for beam, row in zip(self.beams, scores, strict=True):
            repeats = _repeats(beam.tokens, self.search.no_repeat_ngram)
            row[sorted(repeats)] = float("-inf")
        return scores + torch.tensor([[beam.log_probability] for beam in self.beams])

    def _check_done(self, best_log_probability: float) -> None:
        penalty = self.search.length_penalty
        if len(self.finished) == self.search.beams:
            reached = Hypothesis((0,) * (self.step - 1), best_log_probability).value(penalty)
            self.is_done = min(answer.value(penalty) for answer in self.finished) >= reached
        if not self.is_done and self.step > self.longest:
            for beam in self.beams:
                self._finish(beam)
            self.is_done = True
        self.is_done |= not self.beams

    def _finish(self, answer: Hypothesis) -> None:
        """Keep the best answers, as many as there are beams."""
        penalty = self.search.length_penalty
        self.finished = sorted([*self.finished, answer], key=lambda each: -each.value(penalty))[
            : self.search.beams
        ]


def _repeats(tokens: Sequence[int], size: int) -> set[int]:
    """Return the tokens that would complete an n-gram for the second time."""
    if size == 0 or len(tokens) < size - 1:
        return set()
    end = tuple(tokens[len(tokens) - size + 1 :])
    starts = range(len(tokens) - size + 1)
    return {tokens[n + size - 1] for n in starts if tuple(tokens[n : n + size - 1]) == end}
