"""Text with blanks, as Part A for the model and as the text that comes back.

The text that was typed stays as it is; only its blanks are replaced. What a run never trained is
refused here: a mask without its objective, and objectives that fill no blanks. A pattern joins
literal text, which may name masks, and data, in which their names are ordinary words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glm_dist.config.schema import CorruptionConfig, PretrainingTask
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import ConfigError, DataError
from glm_dist.generate.blank_last import blank_last
from glm_dist.generate.sampling import Cut


class Data(str):
    """A part of a pattern that comes from data: it holds no blanks, and may be shortened."""


@dataclass(frozen=True)
class Room:
    """Tokens that a context may have, [CLS] and the end token included."""

    tokens: int
    cut: Cut | None = None
    """End at which a longer text is shortened; None: it is an error. Blanks are never cut."""


@dataclass(frozen=True)
class Prompt:
    """One text with its blanks."""

    tokens: list[int]
    """Part A: [CLS], the text, and the end token unless the text ends in an open tail."""
    mask_indices: list[int]
    """Index of each blank's mask in ``tokens``, in text order. [n]"""
    pieces: list[str]
    """Text before, between and after the blanks. [n + 1]"""

    def answer(self, blank: int, text: str) -> str:
        """Return a text as it continues the text before a blank, whose last space is the mask's.

        Args:
            blank: Number of the blank.
            text: The answer as a person writes it.
        """
        before = self.pieces[blank]
        return f" {text}" if before[-1:].isspace() and not text[:1].isspace() else text

    def filled(self, answers: Sequence[str]) -> str:
        """Return the text with each blank replaced by its answer in square brackets.

        Args:
            answers: One for each blank. [n]
        """
        blanks = [f"[{answer}]" for answer in answers] + [""]
        return "".join(part for pair in zip(self.pieces, blanks, strict=True) for part in pair)


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


def read_prompt(
    text: str, tokenizer: Tokenizer, corruption: CorruptionConfig, *, room: Room | None = None
) -> Prompt:
    """Find the blanks of a text and encode it.

    Names of special tokens in the text become their ids. Text without a mask is continued, as the
    official script does.

    Args:
        text: May contain [MASK], [sMASK] and [gMASK].
        tokenizer: The run's.
        corruption: What the run trained.
        room: Bound of the context; None: none.

    Raises:
        DataError: The text is not UTF-8, has a mask that the run never trained, or is too long.
    """
    check_utf_8(text)
    special = tokenizer.special
    if not special.has_task_masks:
        _refuse_task_masks(text)
    named = [found for found in tokenizer.named_tokens(text) if found.token in special.masks]
    pieces, begin = [], 0
    for found in named:
        pieces.append(text[begin : found.begin])
        begin = found.end
    pieces.append(text[begin:])
    body = tokenizer.encode(text)
    if corruption.task is PretrainingTask.causal_lm:
        _refuse_blanks(bool(named))
        return _continued(body, text, special, room)
    if not named:
        body.append(special.gmask)
        pieces = [_spaced(text), ""]
    ends = [] if body[-1] == special.gmask else [special.eos]
    if room is not None:
        body = _shortened(body, room, special, num_ends=1 + len(ends))
    tokens = [special.cls, *body, *ends]
    _check_trained(set(tokens) & special.masks, special, corruption, named=named)
    return _prompt(tokens, pieces, special, corruption)


def make_prompt(
    parts: Sequence[str], tokenizer: Tokenizer, corruption: CorruptionConfig, *, room: Room
) -> Prompt:
    """Join the parts of a pattern to a context.

    Each part is encoded by itself, as the official code does. Runs that read from left to right get
    the blank at the end; see ``blank_last.py``. Of a context that is too long only
    ``Data`` gives way, the longest part first.

    Args:
        parts: Literal text, in which masks may be named, and ``Data``.
        tokenizer: The run's.
        corruption: What the run trained.
        room: Bound of the context.

    Raises:
        DataError: A part is not UTF-8, a mask was never trained, or the context is too long.
    """
    special = tokenizer.special
    if corruption.task is PretrainingTask.causal_lm:
        parts = blank_last(parts, tokenizer)
    for part in parts:
        check_utf_8(part)
    encoded = [
        tokenizer.encode_document(part) if isinstance(part, Data) else tokenizer.encode(part)
        for part in parts
    ]
    pieces = _pieces(parts, tokenizer)
    if corruption.task is PretrainingTask.causal_lm:
        _refuse_blanks(len(pieces) > 1)
        body = [token for part in encoded for token in part]
        return _continued(body, pieces[0], special, room)
    if len(pieces) == 1:  # no blank: the text is continued, as by ``read_prompt``
        encoded.append([special.gmask])
        pieces = [_spaced(pieces[0]), ""]
    is_open = not isinstance(parts[-1], Data) or len(encoded) > len(parts)
    ends = [] if is_open and encoded[-1][-1:] == [special.gmask] else [special.eos]
    excess = sum(map(len, encoded)) + 1 + len(ends) - room.tokens
    shrinking = [n for n, part in enumerate(parts) if isinstance(part, Data)]
    if excess > 0 and room.cut is None:
        raise _too_long(excess + room.tokens, room.tokens)
    if excess > (spare := sum(len(encoded[n]) for n in shrinking)):
        raise DataError(
            f"The pattern without its data has {excess + room.tokens - spare} tokens, more than the"
            f" {room.tokens} that there is room for.\n"
            "  Shorten the pattern.",
            key="pattern",
            value=excess + room.tokens - spare,
            fix="shorten the pattern",
        )
    for _ in range(excess):
        longest = encoded[max(shrinking, key=lambda n: len(encoded[n]))]
        longest.pop(0 if room.cut is Cut.left else -1)
    tokens = [special.cls, *(token for part in encoded for token in part), *ends]
    _check_trained(set(tokens) & special.masks, special, corruption, named=True)
    return _prompt(tokens, pieces, special, corruption)


def _spaced(text: str) -> str:
    """Return a text that a continuation may follow."""
    return text if not text or text[-1].isspace() else f"{text} "


def _pieces(parts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Return the text before, between and after the blanks of a pattern."""
    pieces = [""]
    for part in parts:
        begin = 0
        if not isinstance(part, Data):
            for found in tokenizer.named_tokens(part):
                if found.token in tokenizer.special.masks:
                    pieces[-1] += part[begin : found.begin]
                    pieces.append("")
                    begin = found.end
        pieces[-1] += part[begin:]
    return pieces


def _refuse_blanks(has_blanks: bool) -> None:
    if has_blanks:
        raise DataError(
            "The text has a blank, but this run was trained with corruption.task=causal_lm, which"
            " continues text.\n"
            "  Leave [MASK] out.",
            key="text",
            value="[MASK]",
            fix="leave [MASK] out",
        )


def _continued(body: list[int], text: str, special: SpecialTokens, room: Room | None) -> Prompt:
    """Make a prompt that a causal run continues: its "mask" is its last token."""
    if room is not None and len(body) + 1 > room.tokens:
        if room.cut is None:
            raise _too_long(len(body) + 1, room.tokens)
        body = body[-(room.tokens - 1) :]  # what is continued stays
    return Prompt([special.cls, *body], [len(body)], [_spaced(text), ""])


def _prompt(
    tokens: list[int], pieces: list[str], special: SpecialTokens, corruption: CorruptionConfig
) -> Prompt:
    indices = [index for index, token in enumerate(tokens) if token in special.masks]
    if corruption.sentinels:
        for number, index in enumerate(indices[1:]):
            tokens[index] = special.first_sentinel + 2 * min(number, special.sentinel_pairs - 1)
    return Prompt(tokens, indices, pieces)


def _shortened(body: list[int], room: Room, special: SpecialTokens, *, num_ends: int) -> list[int]:
    """Keep as many tokens as there is room for beside the ends, all blanks among them."""
    length = room.tokens - num_ends
    if len(body) <= length:
        return body
    masks = [index for index, token in enumerate(body) if token in special.masks]
    begin = 0 if room.cut is Cut.right else len(body) - length
    begin = max(min(begin, masks[0]), masks[-1] + 1 - length)
    if room.cut is None:
        raise _too_long(len(body) + num_ends, room.tokens)
    if not 0 <= begin <= masks[0]:
        raise _blanks_too_far_apart(masks[-1] + 1 - masks[0], length)
    return body[begin : begin + length]


def _too_long(found: int, room: int) -> DataError:
    return DataError(
        f"The text has {found} tokens, more than the {room} that there is room for.\n"
        "  Shorten it, or let it be cut: --truncate left or right. Blanks are never cut.",
        key="text",
        value=found,
        fix="--truncate left",
    )


def _blanks_too_far_apart(found: int, room: int) -> DataError:
    return DataError(
        f"The blanks of the text span {found} tokens, more than the {room} that there is room for,"
        " and blanks are never cut.\n"
        "  Shorten the text between them.",
        key="text",
        value=found,
        fix="shorten the text between the blanks",
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
    if corruption.task is not PretrainingTask.blank_infilling:
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
