"""From a text with mask tokens to the same text with its blanks filled."""

from dataclasses import dataclass

from glm_dist.config.schema import RunConfig
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.generate.candidates import find_candidates
from glm_dist.generate.infill import PartB, fill_blanks
from glm_dist.generate.prompt import read_prompt
from glm_dist.generate.sampling import Sampling
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
    text: str,
    *,
    config: RunConfig,
    sampling: Sampling,
    max_tokens: int,
    seed: int,
) -> Completion:
    """Fill every blank of a text. Collective over a replica.

    Args:
        stage: This rank's stage, in evaluation mode.
        tokenizer: The run's.
        text: May contain [MASK], [sMASK] and [gMASK]; without any it is continued.
        config: The run's configuration; its task is blank infilling.
        sampling: How tokens are drawn.
        max_tokens: Longest answer of a blank.
        seed: Of the draws.

    Raises:
        DataError: The text names a mask that the run never trained, is too long or is not UTF-8.
    """
    prompt = read_prompt(text, tokenizer, config.corruption)
    blanks = fill_blanks(
        stage,
        prompt.tokens,
        part_b=PartB.of(config, tokenizer.special),
        mask_indices=prompt.mask_indices,
        sampling=sampling,
        max_tokens=max_tokens,
        banned=not_text(tokenizer.special, config.tokenizer.vocab_size),
        seed=seed,
    )
    answers = [tokenizer.decode(blank.tokens).strip() for blank in blanks]
    return Completion(prompt.filled(answers), answers)


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
) -> list[list[Answer]]:
    """Find the likeliest answers of each blank of a text. Collective over a replica.

    Args:
        stage: This rank's stage, in evaluation mode.
        tokenizer: The run's.
        text: As for ``complete``. The other blanks stay open while one is looked at.
        config: The run's configuration; its task is blank infilling.
        count: Answers of each blank.
        max_tokens: Longest answer.

    Returns:
        At most ``count`` answers of each blank, in text order, the likeliest first.

    Raises:
        DataError: As for ``complete``.
    """
    prompt = read_prompt(text, tokenizer, config.corruption)
    answers = []
    for blank in range(len(prompt.mask_indices)):
        probabilities: dict[str, float] = {}
        for candidate in find_candidates(
            stage,
            prompt.tokens,
            part_b=PartB.of(config, tokenizer.special),
            mask_indices=prompt.mask_indices,
            blank=blank,
            count=2 * count,
            max_tokens=max_tokens,
            banned=not_text(tokenizer.special, config.tokenizer.vocab_size),
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
