"""Train a SentencePiece vocabulary on one's own text: deterministic, in bounded memory.

The model is lossless: no normalisation, no added or removed spaces, rare characters as bytes. So
decoding gives back the exact text, and no token is unknown.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from glm_dist.data.prepare.output import output_file, writing
from glm_dist.errors import DataError
from glm_dist.files import write_atomically

NUM_SPECIAL_TOKENS = 8
"""End of text, [CLS], [SEP], [MASK], start and end of piece, [gMASK], [sMASK]."""

NUM_BYTES = 256
"""Pieces for single bytes, of which rare characters are made."""

_TOO_HIGH = re.compile(r"[Vv]ocabulary size (?:is )?too high.*<= (\d+)", re.DOTALL)

LONGEST_SENTENCE = 4000
"""Bytes of one training example; longer paragraphs are cut."""


def train_sentencepiece(
    documents: Iterable[str],
    output: Path,
    *,
    vocab_size: int,
    model_type: str = "unigram",
    max_sample_bytes: int = 50_000_000,
    num_threads: int = 1,
) -> int:
    """Train a model and write it.

    Args:
        documents: Texts; read once, to the end.
        output: Model file to write; its folder is made. Written aside and renamed.
        vocab_size: Ids in all, with GLM's special tokens and the 256 bytes.
        model_type: ``unigram`` or ``bpe``.
        max_sample_bytes: Text kept for training. Of a larger corpus a share of the paragraphs is
            taken, spread evenly over it by their hash.
        num_threads: Changes the speed, and the last digits of unigram scores.

    Returns:
        Bytes of text the model was trained on.

    Raises:
        DataError: The text is too small for the vocabulary, an option is out of range, ``output``
            is a folder, or the disk is full.
    """
    _check_size(vocab_size)
    output_file(output)
    sample = sample_paragraphs(documents, max_sample_bytes)
    _check_sample(sample)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            vocab_size=vocab_size - NUM_SPECIAL_TOKENS,
            model_type=model_type,
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"],
            shuffle_input_sentence=False,
            max_sentence_length=LONGEST_SENTENCE + 8,
            num_threads=num_threads,
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise _cannot_learn(vocab_size, _size(sample), error) from error
    with writing(output):
        write_atomically(output, model.getvalue())
    return _size(sample)


def _check_size(vocab_size: int) -> None:
    smallest = NUM_SPECIAL_TOKENS + NUM_BYTES + 1
    if vocab_size < smallest:
        raise DataError(
            f"--vocab-size {vocab_size} is too small: {NUM_SPECIAL_TOKENS} special tokens,"
            f" {NUM_BYTES} bytes and a piece take {smallest}.\n"
            "  Choose a larger --vocab-size; real runs take 30000 to 50000.",
            key="--vocab-size",
            value=vocab_size,
            fix="--vocab-size 30000",
        )


def _check_sample(sample: list[str]) -> None:
    if not sample:
        raise DataError(
            "There is no text to learn a vocabulary from.\n"
            "  Check the files and --text-key, or raise --sample-mb.",
            key="--text-key",
            fix="--text-key …",
        )


def _cannot_learn(vocab_size: int, sample_bytes: int, error: Exception) -> DataError:
    """Say why training failed, in the user's numbers: special tokens count in --vocab-size."""
    text = f"{sample_bytes} bytes of text"
    if "required_chars" in str(error):
        why = f"--vocab-size {vocab_size} is too small for the characters of {text}."
        fix = "Choose a larger --vocab-size."
    elif found := _TOO_HIGH.search(str(error)):
        most = int(found[1]) + NUM_SPECIAL_TOKENS
        why = f"--vocab-size {vocab_size} is too large for {text}."
        fix = f"Choose --vocab-size {most} or less, or give more text."
    else:
        reason = str(error).rpartition("] ")[2].strip().rstrip(".")  # without the place in its code
        why = f"{text} give no vocabulary of --vocab-size {vocab_size}: {reason}."
        fix = "Give more text, or a smaller --vocab-size."
    return DataError(f"{why}\n  {fix}", key="--vocab-size", value=vocab_size, fix=fix)


def sample_paragraphs(documents: Iterable[str], max_bytes: int) -> list[str]:
    """Keep an even sample of the paragraphs, the same for the same text.

    A paragraph is kept if its hash is below a bound; whenever the sample outgrows the limit the
    bound is halved and the paragraphs above it are let go.

    Args:
        documents: Texts.
        max_bytes: Most bytes of text to keep, counted in UTF-8.
    """
    bound = 1 << 64
    kept: list[tuple[int, str]] = []
    size = 0
    for paragraph in _paragraphs(documents):
        data = paragraph.encode("utf-8", errors="replace")
        number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        if number >= bound:
            continue
        kept.append((number, paragraph))
        size += len(data)
        while size > max_bytes and bound > 1:
            bound //= 2
            kept = [(key, text) for key, text in kept if key < bound]
            size = _size([text for _, text in kept])
    return [text for _, text in kept]


def _paragraphs(documents: Iterable[str]) -> Iterator[str]:
    """Cut texts at line ends, and lines at spaces near the longest length."""
    characters = LONGEST_SENTENCE // 4  # a character takes at most four bytes
    for document in documents:
        for line in document.splitlines(keepends=True):
            # A line of one repeated character, such as a rule, teaches nothing.
            if not line.strip():
                continue
            begin = 0
            while len(line) - begin > characters:
                cut = line.rfind(" ", begin + 1, begin + characters)
                cut = cut if cut > 0 else begin + characters
                yield line[begin:cut]
                begin = cut
            yield line[begin:]


def _size(paragraphs: Iterable[str]) -> int:
    return sum(len(paragraph.encode("utf-8", errors="replace")) for paragraph in paragraphs)
