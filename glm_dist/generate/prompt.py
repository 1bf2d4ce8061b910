"""Text with blanks, as Part A for the model and as the text that comes back.

The text that was typed stays as it is; only its blanks are replaced. What a run never trained is
refused here: a mask without its objective, and objectives that fill no blanks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glm_dist.config.schema import CorruptionConfig, PretrainingTask
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import ConfigError, DataError


@dataclass(frozen=True)
class Prompt:
    """One text with its blanks."""

    tokens: list[int]
    """Part A: [CLS], the text, and the end token unless the text ends in an open tail."""
    mask_indices: list[int]
    """Index of each blank's mask in ``tokens``, in text order. [n]"""
    pieces: list[str]
    """Text before, between and after the blanks. [n + 1]"""

    def filled(self, answers: Sequence[str]) -> str:
        """Return the text with each blank replaced by its answer in square brackets.

        Args:
            answers: One for each blank. [n]
        """
        blanks = [f"[{answer}]" for answer in answers] + [""]
        return "".join(part for pair in zip(self.pieces, blanks, strict=True) for part in pair)


def check_fills_blanks(corruption: CorruptionConfig, *, run: str) -> None:
    """Refuse a run whose objective is not blank infilling.

    Args:
        corruption: Of the run.
        run: Its name, for the message.

    Raises:
        ConfigError: It trained another task.
    """
    if corruption.task is not PretrainingTask.blank_infilling:
        raise ConfigError(
            f"{run} was trained with corruption.task={corruption.task.name}, which fills no"
            " blanks.\n"
            "  Name a run that was trained with corruption.task=blank_infilling.",
            key="corruption.task",
            value=corruption.task.name,
            fix="corruption.task=blank_infilling",
        )


def read_prompt(text: str, tokenizer: Tokenizer, corruption: CorruptionConfig) -> Prompt:
    """Find the blanks of a text and encode it.

    Names of special tokens in the text become their ids. Text without a mask is continued, as the
    official script does.

    Args:
        text: May contain [MASK], [sMASK] and [gMASK].
        tokenizer: The run's.
        corruption: What the run trained.

    Raises:
        DataError: The text is not UTF-8, or has a mask that the run never trained.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise not_utf_8(ascii(text))  # bytes that Python could not decode
    special = tokenizer.special
    masks = {special.mask, special.gmask, special.smask}
    if not special.has_task_masks:
        _refuse_task_masks(text)
    named = [found for found in tokenizer.named_tokens(text) if found.token in masks]
    pieces, begin = [], 0
    for found in named:
        pieces.append(text[begin : found.begin])
        begin = found.end
    pieces.append(text[begin:])
    tokens = [special.cls, *tokenizer.encode(text)]
    if not named:
        tokens.append(special.gmask)
        pieces = [text if not text or text[-1].isspace() else f"{text} ", ""]
    if tokens[-1] != special.gmask:
        tokens.append(special.eos)
    _check_trained({tokens[i] for i in _indices(tokens, masks)}, special, corruption, named=named)
    indices = _indices(tokens, masks)
    if corruption.sentinels:
        for number, index in enumerate(indices[1:]):
            tokens[index] = special.first_sentinel + 2 * min(number, special.sentinel_pairs - 1)
    return Prompt(tokens, indices, pieces)


def not_utf_8(found: str) -> DataError:
    """Explain that text is not UTF-8."""
    return DataError(
        f"The text {found} is not UTF-8.\n  Convert it, for example with iconv -t UTF-8.",
        key="text",
        value=found,
        fix="iconv -t UTF-8",
    )


def _indices(tokens: list[int], masks: set[int]) -> list[int]:
    return [index for index, token in enumerate(tokens) if token in masks]


def _refuse_task_masks(text: str) -> None:
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


def _check_trained(
    used: set[int], special: SpecialTokens, corruption: CorruptionConfig, *, named: object
) -> None:
    """Refuse a mask whose objective had no share of the rows."""
    single = corruption.single_span_share
    shares = {
        "[MASK]": (special.mask, "span", corruption.span_share * (1 - single) + single),
        "[sMASK]": (special.smask, "sentence", corruption.sentence_share * (1 - single)),
        "[gMASK]": (special.gmask, "document", corruption.document_share * (1 - single)),
    }
    trained = {name: token for name, (token, _, share) in shares.items() if share > 0}
    for name, (token, objective, _) in shares.items():
        if token not in used or token in trained.values():
            continue
        what = f"The text has {name}" if named else f"Text without a mask is continued by {name}"
        raise DataError(
            f"{what}, which this run never trained: corruption.{objective}_share is 0.\n"
            f"  Write {' or '.join(trained)} where the model shall write.",
            key="text",
            value=name,
            fix=" or ".join(trained),
        )
