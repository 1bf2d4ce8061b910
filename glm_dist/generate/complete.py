"""From texts with mask tokens to the same texts with their blanks filled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glm_dist.config.schema import RunConfig
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.generate.beam import beam_search
from glm_dist.generate.candidates import find_candidates
from glm_dist.generate.infill import Rules, fill_blanks, write_answers
from glm_dist.generate.part_b import PartB
from glm_dist.generate.prompt import Prompt, Room, read_run_prompt
from glm_dist.generate.sampling import Cut, GenerationOptions
from glm_dist.model.stage import GLMStage


@dataclass(frozen=True)
class Completion:
    """One text with its blanks filled."""

    text: str
    """The text as typed, each blank replaced by its answer in square brackets."""
    answers: list[str]
    """The text written into each blank, in text order."""


def complete(
    stage: GLMStage,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    config: RunConfig,
    options: GenerationOptions,
) -> list[Completion]:
    """Fill every blank of texts, side by side. Collective over a replica.

    Args:
        stage: This rank's stage, in evaluation mode.
        tokenizer: The run's.
        texts: May contain [MASK], [sMASK] and [gMASK]; without any a text is continued.
        config: The run's configuration; its task is blank infilling.
        options: How answers are written.

    Raises:
        DataError: A text names a mask that the run never trained, is too long or is not UTF-8.
    """
    prompts = [open_prompt(text, tokenizer, config, cut=options.truncate) for text in texts]
    found = write(stage, tokenizer, prompts, config=config, options=options)
    return [
        Completion(prompt.filled(answers), answers)
        for prompt, answers in zip(prompts, found, strict=True)
    ]


def write(
    stage: GLMStage,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    config: RunConfig,
    options: GenerationOptions,
) -> list[list[str]]:
    """Write the answers of prompts, side by side; see ``complete``.

    Returns:
        The text of each answer, for each blank of each prompt.
    """
    part_b = PartB.of(config, tokenizer.special)
    rules = _rules(tokenizer, config, options)
    search = options.beam_search
    if search is None:
        found = fill_blanks(stage, prompts, part_b=part_b, rules=rules)
    else:
        found = beam_search(stage, prompts, part_b=part_b, rules=rules, search=search)
    return [
        [_until(tokenizer.decode(tokens), options.stop).strip() for tokens in blanks]
        for blanks in found
    ]


def stream(
    stage: GLMStage,
    tokenizer: Tokenizer,
    text: str,
    *,
    config: RunConfig,
    options: GenerationOptions,
) -> Iterator[str]:
    """Fill the blanks of a text and yield it piece by piece as it grows; see ``complete``.

    Every rank of a replica must take all pieces.
    """
    prompt = open_prompt(text, tokenizer, config, cut=options.truncate)
    part_b, rules = PartB.of(config, tokenizer.special), _rules(tokenizer, config, options)
    yield prompt.pieces[0]
    answer = _GrowingAnswer(tokenizer, options.stop)
    blank = 0
    for written in write_answers(stage, [prompt], part_b=part_b, rules=rules):
        while blank < written.blank:
            yield answer.close() + prompt.pieces[blank + 1]
            answer, blank = _GrowingAnswer(tokenizer, options.stop), blank + 1
        yield answer.add(written.token)
    while blank < len(prompt.mask_indices):
        yield answer.close() + prompt.pieces[blank + 1]
        answer, blank = _GrowingAnswer(tokenizer, options.stop), blank + 1


class _GrowingAnswer:
    """The text of an answer, as far as later tokens cannot change it any more."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._tokens: list[int] = []
        self._shown = ""
        self._is_open = False

    def add(self, token: int) -> str:
        """Return what a token adds to the text that was shown."""
        self._tokens.append(token)
        text = _until(self._tokenizer.decode(self._tokens), self._stops)
        return self._show(_certain(text, self._stops).strip())

    def close(self) -> str:
        """Return the rest, and the bracket."""
        text = _until(self._tokenizer.decode(self._tokens), self._stops).strip()
        rest = self._show(text)
        return rest + ("]" if self._is_open else "[]")

    def _show(self, text: str) -> str:
        if len(text) <= len(self._shown) or not text.startswith(self._shown):
            return ""
        fresh, self._shown = text[len(self._shown) :], text
        opening, self._is_open = "" if self._is_open else "[", True
        return opening + fresh


def _certain(text: str, stops: Sequence[str]) -> str:
    """Leave out the end of a text that may be half a character or the beginning of a stop."""
    text = text.rstrip("\ufffd")
    longest = max(map(len, stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return text[:-size]
    return text


def open_prompt(
    text: str, tokenizer: Tokenizer, config: RunConfig, *, cut: Cut | None = None
) -> Prompt:
    """Read a text with blanks as a run's model takes it; see ``read_run_prompt``.

    Raises:
        DataError: The text names a mask that the run never trained, is too long or is not UTF-8.
    """
    room = Room(config.model.max_position_embeddings + 1, cut)
    return read_run_prompt(text, tokenizer, config, room=room)


def _rules(tokenizer: Tokenizer, config: RunConfig, options: GenerationOptions) -> Rules:
    """Ban what is no text, and end answers at stop strings."""

    def ends(tokens: Sequence[int]) -> bool:
        text = tokenizer.decode(tokens)
        return any(stop in text for stop in options.stop)

    banned = not_text(tokenizer.special, config.tokenizer.vocab_size)
    return Rules(options, banned, ends) if options.stop else Rules(options, banned)


def _until(text: str, stops: Sequence[str]) -> str:
    """Cut a text before the first of the stop strings."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


@dataclass(frozen=True)
class Answer:
    """One text that may stand in a blank."""

    text: str
    probability: float
    """Of exactly this text, 0 to 1."""


def list_answers(
    stage: GLMStage,
    tokenizer: Tokenizer,
    text: str,
    *,
    config: RunConfig,
    count: int,
    max_tokens: int,
    cut: Cut | None = None,
) -> list[list[Answer]]:
    """Find the likeliest answers of each blank of a text. Collective over a replica.

    Args:
        stage: This rank's stage, in evaluation mode.
        tokenizer: The run's.
        text: As for ``complete``. The other blanks stay open while one is looked at.
        config: The run's configuration; its task is blank infilling.
        count: Answers of each blank.
        max_tokens: Longest answer.
        cut: End at which a text that is too long is shortened; None: it is an error.

    Returns:
        At most ``count`` answers of each blank, in text order, the likeliest first.

    Raises:
        DataError: As for ``complete``.
    """
    prompt = open_prompt(text, tokenizer, config, cut=cut)
    rules = _rules(tokenizer, config, GenerationOptions(max_tokens=max_tokens))
    answers = []
    for blank in range(len(prompt.mask_indices)):
        probabilities: dict[str, float] = {}
        for candidate in find_candidates(
            stage,
            prompt,
            part_b=PartB.of(config, tokenizer.special),
            rules=rules,
            blank=blank,
            count=2 * count,
        ):
            # Several token sequences can spell one text, with a space before it or without.
            spelt = tokenizer.decode(candidate.tokens).strip()
            probabilities[spelt] = probabilities.get(spelt, 0.0) + candidate.probability
        found = [Answer(spelt, probability) for spelt, probability in probabilities.items()]
        answers.append(sorted(found, key=lambda answer: -answer.probability)[:count])
    return answers


def not_text(special: SpecialTokens, vocab_size: int) -> list[int]:
    """List ids of tokens that structure a row and have no place in an answer.

    Args:
        special: Ids of special tokens; those beyond the vocabulary do not exist.
        vocab_size: Tokens that exist.
    """
    ids = {
        special.pad,
        special.cls,
        special.sep,
        special.unk,
        special.sop,
        special.mask,
        special.gmask,
        special.smask,
        special.block_mask,
        *range(special.first_sentinel, special.first_sentinel + 2 * special.sentinel_pairs),
    }
    return sorted(token for token in ids if 0 <= token < vocab_size)
