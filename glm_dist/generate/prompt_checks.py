"""Texts that a run cannot fill or continue, and the messages about them."""

from collections.abc import Container

from glm_dist.config.schema import CorruptionConfig, PretrainingTask
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.errors import ConfigError, DataError


def check_writes(corruption: CorruptionConfig, *, run: str) -> None:
    """Refuse a run whose objective neither fills blanks nor continues text.

    Args:
        corruption: Of the run.
        run: Its name, for the message.

    Raises:
        ConfigError: It trained another task.
    """
    task = corruption.task
    if task not in (PretrainingTask.blank_infilling, PretrainingTask.causal_lm):
        raise ConfigError(
            f"{run} was trained with corruption.task={task.name}, which neither fills blanks nor"
            " continues text.\n"
            "  Name a run that was trained with corruption.task=blank_infilling or causal_lm.",
            key="corruption.task",
            value=task.name,
            fix="corruption.task=blank_infilling",
        )


def check_utf_8(text: str) -> None:
    """Refuse bytes that Python could not decode.

    Raises:
        DataError: The text has some.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise not_utf_8(ascii(text))


def not_utf_8(found: str) -> DataError:
    """Explain that text is not UTF-8."""
    return DataError(
        f"The text {found} is not UTF-8.\n  Convert it, for example with iconv -t UTF-8.",
        key="text",
        value=found,
        fix="iconv -t UTF-8",
    )


def refuse_blanks(has_blanks: bool) -> None:
    """Refuse blanks in runs that continue text.

    Args:
        has_blanks: The text has some.

    Raises:
        DataError: It has.
    """
    if has_blanks:
        raise DataError(
            "The text has a blank, but this run was trained with corruption.task=causal_lm, which"
            " continues text.\n"
            "  Leave [MASK] out.",
            key="text",
            value="[MASK]",
            fix="leave [MASK] out",
        )


def refuse_task_masks(text: str) -> None:
    """Refuse the masks of other tokenizers.

    Raises:
        DataError: The text has one.
    """
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


def check_trained(
    used: set[int],
    special: SpecialTokens,
    corruption: CorruptionConfig,
    *,
    named: object,
    learned: Container[str] = (),
) -> None:
    """Refuse a mask whose objective had no share of the rows.

    Args:
        used: Ids of the masks of a text.
        special: Ids of the special tokens.
        corruption: What the run trained.
        named: True if the text names them.
        learned: Names of masks that were trained otherwise.

    Raises:
        DataError: One was never trained.
    """
    if corruption.task is not PretrainingTask.blank_infilling:
        if not learned:
            _check_is_mask(used, special, corruption.task)
        return
    single = corruption.single_span_share
    shares = {
        "[MASK]": (special.mask, "span", corruption.span_share * (1 - single) + single),
        "[sMASK]": (special.smask, "sentence", corruption.sentence_share * (1 - single)),
        "[gMASK]": (special.gmask, "document", corruption.document_share * (1 - single)),
    }
    trained = {name: token for name, (token, _, share) in shares.items() if share > 0}
    for name, (token, objective, _) in shares.items():
        if token not in used or token in trained.values() or name in learned:
            continue
        what = f"The text has {name}" if named else f"Text without a mask is continued by {name}"
        raise DataError(
            f"{what}, which this run never trained: corruption.{objective}_share is 0.\n"
            f"  Write {' or '.join(trained)} where the model shall write.",
            key="text",
            value=name,
            fix=" or ".join(trained),
        )


def _check_is_mask(used: set[int], special: SpecialTokens, task: PretrainingTask) -> None:
    """Refuse all masks but [MASK], which stands for the blanks of the other objectives."""
    if used - {special.mask}:
        raise DataError(
            f"The text has [sMASK] or [gMASK], which this run never trained: its blanks, by"
            f" corruption.task={task.name}, are [MASK].\n"
            "  Write [MASK] instead.",
            key="text",
            value="[sMASK] or [gMASK]",
            fix="[MASK]",
        )


def too_long(found: int, room: int) -> DataError:
    """Explain that a text is too long and may not be cut.

    Args:
        found: Its tokens.
        room: Tokens that there is room for.
    """
    return DataError(
        f"The text has {found} tokens, more than the {room} that there is room for.\n"
        "  Shorten it, or let it be cut: --truncate left or right. Blanks are never cut.",
        key="text",
        value=found,
        fix="--truncate left",
    )


def blanks_too_far_apart(found: int, room: int) -> DataError:
    """Explain that blanks do not fit together.

    Args:
        found: Tokens from the first to the last one.
        room: Tokens that there is room for.
    """
    return DataError(
        f"The blanks of the text span {found} tokens, more than the {room} that there is room for,"
        " and blanks are never cut.\n"
        "  Shorten the text between them.",
        key="text",
        value=found,
        fix="shorten the text between the blanks",
    )
