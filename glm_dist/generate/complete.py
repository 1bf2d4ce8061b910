"""From a text with mask tokens to the same text with its blanks filled."""

from glm_dist.config.schema import RunConfig
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import DataError
from glm_dist.generate.infill import Blank, fill_blanks
from glm_dist.generate.sampling import Sampling
from glm_dist.model.stage import GLMStage


def undecodable(found: str) -> DataError:
    """Explain that a text is not UTF-8."""
    return DataError(
        f"The text {found} is not UTF-8.\n  Convert it, for example with iconv -t UTF-8.",
        key="text",
        value=found,
        fix="iconv -t UTF-8",
    )


def complete(
    stage: GLMStage,
    tokenizer: Tokenizer,
    text: str,
    *,
    config: RunConfig,
    sampling: Sampling,
    max_tokens: int,
    seed: int,
) -> str:
    """Fill every blank of a text, answers in square brackets.

    A text without a mask token is continued, as the official script does.

    Args:
        stage: This rank's stage, in evaluation mode.
        tokenizer: The run's.
        text: May contain [MASK], [sMASK] and [gMASK].
        config: The run's configuration.
        sampling: How tokens are drawn.
        max_tokens: Longest answer of a blank.
        seed: Of the draws.

    Raises:
        DataError: The text names a mask that the tokenizer does not have, or is too long.
    """
    special = tokenizer.special
    context = context_of(tokenizer, text)
    blanks = fill_blanks(
        stage,
        context,
        special=special,
        sampling=sampling,
        max_tokens=max_tokens,
        max_position=config.model.max_position_embeddings,
        banned=not_text(special, config.tokenizer.vocab_size),
        seed=seed,
    )
    return render(tokenizer, context, blanks)


def not_text(special: SpecialTokens, vocab_size: int) -> list[int]:
    """Ids of tokens that structure a row and have no place in an answer.

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
    }
    return sorted(token for token in ids if 0 <= token < vocab_size)


def context_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Part A of a text: [CLS], its tokens, and the end token unless it ends in an open tail."""
    special = tokenizer.special
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise undecodable(ascii(text))  # bytes that Python could not decode
    if not special.has_task_masks:
        for name in ("[gMASK]", "[sMASK]"):
            if name in text:
                raise DataError(
                    f"The text has {name}, but [MASK] is the only mask token of this run's"
                    " tokenizer.\n"
                    "  Write [MASK] instead.",
                    key="text",
                    value=name,
                    fix="[MASK]",
                )
    tokens = tokenizer.encode(text)
    if not {special.mask, special.gmask, special.smask} & set(tokens):
        tokens.append(special.gmask)
    ends_open = tokens[-1] == special.gmask
    return [special.cls, *tokens, *([] if ends_open else [special.eos])]


def render(tokenizer: Tokenizer, context: list[int], blanks: list[Blank]) -> str:
    """The context with each mask replaced by its answer in brackets, without special tokens."""
    hidden = {tokenizer.special.cls, tokenizer.special.eos}
    pieces, start = [], 0
    for blank in blanks:
        before = [token for token in context[start : blank.mask_index] if token not in hidden]
        pieces += [tokenizer.decode(before), f"[{tokenizer.decode(blank.tokens).strip()}]"]
        start = blank.mask_index + 1
    pieces.append(tokenizer.decode([t for t in context[start:] if t not in hidden]))
    return " ".join(piece.strip() for piece in pieces if piece.strip())
