"""Text with blanks, as Part A for the model and as the text that comes back.

The text that was typed stays as it is; only its blanks are replaced. What a run never trained is
refused here: a mask without its objective, and objectives that fill no blanks. A pattern joins
literal text, which may name masks, and data, in which their names are ordinary words.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from glm_dist.config.patterns import MASKS, Mark
from glm_dist.config.schema import CorruptionConfig, PretrainingTask, RunConfig
from glm_dist.data.tokenizer.special_tokens import SpecialTokens
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import DataError
from glm_dist.generate.blank_last import blank_last
from glm_dist.generate.prompt_checks import (
    blanks_too_far_apart,
    check_trained,
    check_utf_8,
    refuse_blanks,
    refuse_task_masks,
    too_long,
)
from glm_dist.generate.sampling import Cut


class Data(str):
    """A part of a pattern that comes from data: it holds no blanks, and may be shortened."""

    shortens: bool
    """False: it never gives way."""
    keep_end: bool
    """It is shortened at its beginning."""

    def __new__(cls, text: object, *, shortens: bool = True, keep_end: bool = False) -> Self:
        """Mark a text, or a number as text."""
        data = super().__new__(cls, text)
        data.shortens, data.keep_end = shortens, keep_end
        return data


Part = str | Mark
"""Literal text, in which masks may be named, ``Data``, or a mark."""


@dataclass(frozen=True)
class Frame:
    """Special tokens around the parts of a prompt."""

    opens: bool = True
    """[CLS] comes first."""
    closes: bool = True
    """The end token comes last, unless the prompt ends in [gMASK]."""
    continues: bool = True
    """A prompt without a blank gets one at its end."""
    slots: Sequence[int] = ()
    """Ids of learned tokens (``RunConfig.prompt_slots``), spread in order over the pattern's slots;
    without slots all of them come first."""


PLAIN = Frame()


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


def read_prompt(
    text: str,
    tokenizer: Tokenizer,
    corruption: CorruptionConfig,
    *,
    room: Room | None = None,
    learned: Container[str] = (),
) -> Prompt:
    """Find the blanks of a text and encode it.

    Names of special tokens in the text become their ids. Text without a mask is continued, as the
    official script does.

    Args:
        text: May contain [MASK], [sMASK] and [gMASK].
        tokenizer: The run's.
        corruption: What the run trained.
        room: Bound of the context; None: none.
        learned: As for ``make_prompt``.

    Raises:
        DataError: The text is not UTF-8, has a mask that the run never trained, or is too long.
    """
    check_utf_8(text)
    special = tokenizer.special
    if not special.has_task_masks:
        refuse_task_masks(text)
    named = [found for found in tokenizer.named_tokens(text) if found.token in special.masks]
    pieces, begin = [], 0
    for found in named:
        pieces.append(text[begin : found.begin])
        begin = found.end
    pieces.append(text[begin:])
    body = tokenizer.encode(text)
    if corruption.task is PretrainingTask.causal_lm:
        refuse_blanks(bool(named))
        return _continued(body, text, special, room)
    if not named:
        body.append(special.gmask)
        pieces = [_spaced(text), ""]
    ends = [] if body[-1] == special.gmask else [special.eos]
    if room is not None:
        body = _shortened(body, room, special, num_ends=1 + len(ends))
    tokens = [special.cls, *body, *ends]
    masks = set(tokens) & special.masks
    check_trained(masks, special, corruption, named=named, learned=learned)
    return _prompt(tokens, pieces, special, corruption)


def read_run_prompt(text: str, tokenizer: Tokenizer, config: RunConfig, *, room: Room) -> Prompt:
    """Read a text as ``read_prompt`` does, with the learned tokens of the run, if it has any.

    Args:
        text: {*} marks their places; without it they come first.
        tokenizer: The run's.
        config: The run's.
        room: Bound of the context.

    Raises:
        DataError: As for ``read_prompt``.
    """
    learned = learned_masks(config)
    if not config.prompt_slots:
        return read_prompt(text, tokenizer, config.corruption, room=room, learned=learned)
    pieces = text.split(Mark.slot.value)
    parts: list[Part] = [Mark.slot] * (2 * len(pieces) - 1)
    parts[::2] = pieces
    frame = Frame(slots=config.prompt_slots)
    return make_prompt(parts, tokenizer, config.corruption, room=room, frame=frame, learned=learned)


def learned_masks(config: RunConfig) -> list[str]:
    """List the masks in the pattern of a finetuned run, which knows them whatever it pretrained."""
    return [name for name in MASKS if name in config.task.prompt_pattern]


def make_prompt(
    parts: Sequence[Part],
    tokenizer: Tokenizer,
    corruption: CorruptionConfig,
    *,
    room: Room,
    frame: Frame = PLAIN,
    learned: Container[str] = (),
) -> Prompt:
    """Join the parts of a pattern to a context.

    Each part is encoded by itself, as the official code does. Without task masks in the vocabulary
    [sMASK] and [gMASK] are [MASK]. Runs that read from left to right get the blank at the end; see
    ``blank_last.py``. Of a context that is too long only ``Data`` gives way; see ``_shorten``.

    Args:
        parts: Literal text, in which masks may be named, ``Data`` and marks.
        tokenizer: The run's.
        corruption: What the run trained.
        room: Bound of the context.
        frame: What stands around the parts.
        learned: Names of masks that finetuning trains, besides those of pretraining.

    Raises:
        DataError: A part is not UTF-8, a mask was never trained, or the context is too long.
    """
    special = tokenizer.special
    parts = [_with_known_masks(part, special) for part in parts]
    is_causal = corruption.task is PretrainingTask.causal_lm
    if is_causal:
        parts = blank_last(parts, tokenizer)
    texts = [part for part in parts if not isinstance(part, Mark)]
    for part in texts:
        check_utf_8(part)
    pieces = _pieces(texts, tokenizer)
    refuse_blanks(is_causal and len(pieces) > 1)
    is_continued = len(pieces) == 1 and frame.continues and not is_causal  # as by ``read_prompt``
    if is_continued or is_causal:
        pieces = [_spaced(pieces[0]), ""]
    is_open = is_continued or is_causal or _ends_open(parts, special)
    begins = [special.cls] if frame.opens else []
    ends = [special.gmask] if is_continued else []
    if frame.closes and not is_open:
        ends.append(special.eos)
    slots = _spread(parts, frame.slots)
    encoded = [
        next(slots) if isinstance(part, Mark) else _encoded(part, tokenizer) for part in parts
    ]
    begins += next(slots)
    _shorten(parts, encoded, room, num_others=len(begins) + len(ends))
    tokens = [*begins, *(token for part in encoded for token in part), *ends]
    if is_causal:
        return Prompt(tokens, [len(tokens) - 1], pieces)
    masks = set(tokens) & special.masks
    check_trained(masks, special, corruption, named=True, learned=learned)
    return _prompt(tokens, pieces, special, corruption)


def _with_known_masks(part: Part, special: SpecialTokens) -> Part:
    if special.has_task_masks or isinstance(part, Mark | Data):
        return part
    for name in MASKS:
        part = part.replace(name, "[MASK]")
    return part


def _encoded(part: str, tokenizer: Tokenizer) -> list[int]:
    if isinstance(part, Data):
        return tokenizer.encode_document(part)
    ids: list[int] = []
    for number, piece in enumerate(part.split("[SEP]")):  # RoBERTa's is named </s>
        ids += [tokenizer.special.sep] if number else []
        ids += tokenizer.encode(piece)
    return ids


def _ends_open(parts: Sequence[Part], special: SpecialTokens) -> bool:
    """Tell whether a prompt ends in [gMASK], which its answer continues without an end token."""
    last = parts[-1]
    is_literal = not isinstance(last, Data | Mark)
    return is_literal and special.has_task_masks and str(last).rstrip().endswith("[gMASK]")


def _spread(parts: Sequence[Part], slots: Sequence[int]) -> Iterator[list[int]]:
    """Yield the learned tokens of each mark, then those of the beginning."""
    marks = [part for part in parts if isinstance(part, Mark)]
    begin = 0
    for mark in marks:
        most = -(-len(slots) // marks.count(Mark.slot)) if mark is Mark.slot else 0
        yield list(slots[begin : begin + most])
        begin += most
    yield list(slots[begin:])


def _shorten(
    parts: Sequence[Part], encoded: Sequence[list[int]], room: Room, *, num_others: int
) -> None:
    """Remove tokens that there is no room for, as the official code does.

    One at a time they leave the last part that may give way, on the side of the border that has
    more such tokens; a prompt without a border has one side.

    Args:
        parts: Of the prompt.
        encoded: Ids of each part; shortened in place.
        room: Bound of the context.
        num_others: Tokens around the parts.

    Raises:
        DataError: The rest is too long, or nothing may be cut.
    """
    total = sum(map(len, encoded)) + num_others
    excess = total - room.tokens
    if excess <= 0:
        return
    if room.cut is None:
        raise too_long(total, room.tokens)
    border = parts.index(Mark.border) if Mark.border in parts else len(parts)
    yielding = [n for n, part in enumerate(parts) if isinstance(part, Data) and part.shortens]
    sides = [[n for n in yielding if n < border], [n for n in yielding if n > border]]
    spares = [sum(len(encoded[n]) for n in side) for side in sides]
    if excess > sum(spares):
        raise DataError(
            f"The pattern without its data has {total - sum(spares)} tokens, more than the"
            f" {room.tokens} that there is room for.\n"
            "  Shorten the pattern.",
            key="pattern",
            value=total - sum(spares),
            fix="shorten the pattern",
        )
    for _ in range(excess):
        side = 0 if spares[0] > spares[1] else 1
        spares[side] -= 1
        while not encoded[sides[side][-1]]:
            sides[side].pop()
        number = sides[side][-1]
        part = parts[number]
        is_left = room.cut is Cut.left or (isinstance(part, Data) and part.keep_end)
        encoded[number].pop(0 if is_left else -1)


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


def _continued(body: list[int], text: str, special: SpecialTokens, room: Room | None) -> Prompt:
    """Make a prompt that a causal run continues: its "mask" is its last token."""
    if room is not None and len(body) + 1 > room.tokens:
        if room.cut is None:
            raise too_long(len(body) + 1, room.tokens)
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
        raise too_long(len(body) + num_ends, room.tokens)
    if not 0 <= begin <= masks[0]:
        raise blanks_too_far_apart(masks[-1] + 1 - masks[0], length)
    return body[begin : begin + length]
