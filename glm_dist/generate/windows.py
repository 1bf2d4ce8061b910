"""Language modelling as blanks: windows of a long text, and the last word of a short one.

As the official evaluation lays them out (GLM 4f61ed7): the blank is [gMASK], or [MASK] without task
masks, and answers have no [eop].
"""

from collections.abc import Sequence

from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.errors import ConfigError
from glm_dist.generate.part_b import PartB
from glm_dist.generate.score import Question


def perplexity_windows(
    tokens: Sequence[int],
    part_b: PartB,
    *,
    window: int,
    stride: int,
    unidirectional: bool = False,
) -> list[Question]:
    """Cut a text into windows in which every token but the first is scored once.

    The first window shows one token and scores the rest. Each later one starts ``stride`` tokens
    further and scores its tokens that are new; it shows the others in both directions or, if
    unidirectional, reads them from left to right.

    Args:
        tokens: Ids of the text, at least two.
        part_b: How the run continues text.
        window: Tokens of a window (official: sequence length - 1).
        stride: Tokens that a later window adds (official name: overlapping eval).
        unidirectional: See above.

    Raises:
        ConfigError: The stride is not from 1 to the window less one.
    """
    if not 1 <= stride < window:
        raise ConfigError(
            f"stride={stride} must be at least 1 and less than the window of {window} tokens.\n"
            "  Choose a smaller stride.",
            key="stride",
            value=stride,
            fix=f"stride={max(1, window // 2)}",
        )
    questions = []
    for begin in range(0, max(len(tokens) - window, 0) + stride, stride):
        piece = list(tokens[begin : begin + window])
        is_first = begin == 0
        shown = 1 if is_first or unidirectional else window - stride
        context = [part_b.special.cls, *piece[:shown], *part_b.open_end]
        questions.append(
            Question(
                context=context,
                mask_index=len(context) - 1,
                answers=[piece[shown:]],
                skipped=0 if is_first else window - stride - shown,
            )
        )
    return questions


def last_words(
    context: Sequence[int],
    answers: Sequence[Sequence[int]],
    special: SpecialTokens,
    *,
    unidirectional: bool = False,
) -> Question:
    """Ask for the end of a text (LAMBADA).

    Args:
        context: Ids of the text before it, at least one.
        answers: Ids of the ends that are scored.
        special: Ids of the special tokens.
        unidirectional: Show the first token only, and read the rest from left to right.
    """
    shown = context[:1] if unidirectional else context
    read = list(context[len(shown) :])
    return Question(
        context=[special.cls, *shown, special.gmask, special.eos],
        mask_index=len(shown) + 1,
        answers=[[*read, *answer] for answer in answers],
        skipped=len(read),
    )
