"""Ordinary text to ordinary ids: the two tokenizer libraries behind one small protocol.

A codec knows nothing of GLM's special tokens; ``tokenizer.py`` adds them. This file and
``training.py`` are the only ones that import ``sentencepiece`` and ``tokenizers``.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers

from glm_dist.data.tokenizer.control_pieces import hide_pieces
from glm_dist.errors import DataError
from glm_dist.files import exists, is_file


class Codec(Protocol):
    """Text without special tokens to ids, and back."""

    @property
    def size(self) -> int:
        """Ids are 0 … size - 1."""

    def encode(self, text: str) -> list[int]:
        """Encode; special tokens' names in the text are ordinary text."""

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Encode as an array, without a list in between where the library can."""

    def decode(self, ids: Sequence[int], *, continues: bool) -> str:
        """Decode ids below ``size``.

        Args:
            ids: At least one id.
            continues: Whether text stands before, so that a leading space counts.
        """

    def texts(self) -> list[str]:
        """Decode every id by itself."""

    def id_of(self, piece: str) -> int | None:
        """Find the id of a piece of the vocabulary."""


class SentencePieceCodec:
    """A SentencePiece model file."""

    def __init__(self, model: Path) -> None:
        """Load the model.

        Raises:
            DataError: The file is no SentencePiece model.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{model} is no SentencePiece model that can be read: {error}.\n"
                "  Check tokenizer.path, or train a model with glm-dist tokenizer train.",
                key=str(model),
                value=str(error),
                fix="glm-dist tokenizer train",
            ) from error

    @property
    def size(self) -> int:
        """Ids are 0 … size - 1."""
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Encode; see ``Codec``."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Encode as an array; see ``Codec``."""
        if hasattr(self._processor, "EncodeAsNumpy"):  # since SentencePiece 0.2.2
            array: NDArray[np.int32] = self._processor.EncodeAsNumpy(text)
            return array
        return np.array(self.encode(text), np.int32)

    def decode(self, ids: Sequence[int], *, continues: bool) -> str:
        """Decode; the model's own control ids (<s>, </s>) print as nothing."""
        text = str(self._processor.decode(list(ids)))
        begins_word = str(self._processor.id_to_piece(ids[0])).startswith("▁")
        # Models with a dummy prefix drop the first space of whatever they decode.
        return f" {text}" if continues and begins_word and not text.startswith(" ") else text

    def texts(self) -> list[str]:
        """Decode every id by itself."""
        texts: list[str] = self._processor.decode([[number] for number in range(self.size)])
        return texts

    def id_of(self, piece: str) -> int | None:
        """Find the id of a piece."""
        found = int(self._processor.piece_to_id(piece))
        return None if found == self._processor.unk_id() else found

    @property
    def unk(self) -> int:
        """Id of unknown text."""
        return int(self._processor.unk_id())


class HuggingFaceCodec:
    """A tokenizer of the ``tokenizers`` library."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Wrap a tokenizer; its added special tokens count as ordinary text."""
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._use(tokenizer)

    def _use(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer

    def hide(self, pieces: Collection[str]) -> None:
        """Encode no text to some pieces from now on; their ids stay."""
        definition = hide_pieces(self._tokenizer.to_str(), pieces)
        self._use(tokenizers.Tokenizer.from_str(definition))

    @property
    def size(self) -> int:
        """One more than the highest id, which is what an embedding table needs."""
        return max(self._ids.values()) + 1

    def encode(self, text: str) -> list[int]:
        """Encode; see ``Codec``."""
        # The library's fast call leaves out the places of tokens in the text, which none asks for.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """Encode as an array; see ``Codec``."""
        ids = self.encode(text)
        return np.fromiter(ids, np.int32, len(ids))

    def decode(self, ids: Sequence[int], *, continues: bool) -> str:
        """Decode; see ``Codec``."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def texts(self) -> list[str]:
        """Decode every id by itself."""
        ids = [[number] for number in range(self.size)]
        texts: list[str] = self._tokenizer.decode_batch(ids, skip_special_tokens=False)
        return texts

    def id_of(self, piece: str) -> int | None:
        """Find the id of a piece."""
        return self._ids.get(piece)

    def pieces(self) -> dict[str, int]:
        """Return the ids of all pieces."""
        return self._ids


def bert_codec(vocabulary: Path) -> HuggingFaceCodec:
    """Build uncased WordPiece: lower case, no accents, CJK characters apart."""
    try:
        # Other line ends than these, such as U+2028, are pieces.
        lines = vocabulary.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{vocabulary} is not text, as BERT's vocab.txt with one piece a line is.\n"
            "  Choose the file's kind with --kind or tokenizer.kind.",
            key=str(vocabulary),
            fix="--kind …",
        ) from error
    model = models.WordPiece(
        {line.removesuffix("\r"): number for number, line in enumerate(lines)},
        unk_token="[UNK]",
        max_input_chars_per_word=100,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return HuggingFaceCodec(tokenizer)


def byte_level_codec(vocabulary: Path, merges: Path) -> HuggingFaceCodec:
    """Build byte-level BPE as GPT-2 and RoBERTa use it.

    Raises:
        DataError: A file is damaged, or the two do not belong together.
    """
    read_vocabulary(vocabulary)
    try:
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    # The library raises bare Exception for every mistake in the file.
    except Exception as error:
        raise DataError(
            f"{merges} does not hold pairs of the pieces in {vocabulary}, one a line: {error}.\n"
            "  Fetch both files again, from one place.",
            key=str(merges),
            value=str(error),
        ) from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return HuggingFaceCodec(tokenizer)


def read_vocabulary(file: Path) -> dict[str, int]:
    """Read a ``vocab.json``.

    Args:
        file: JSON object with the id of each piece.

    Raises:
        DataError: It is no such file.
    """
    try:
        pieces = json.loads(file.read_bytes())
        if not (isinstance(pieces, dict) and all(type(each) is int for each in pieces.values())):
            raise ValueError("no object of pieces and their ids")
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} is no vocab.json of a byte-level tokenizer: {error}.\n"
            "  Fetch the file again, or choose its kind with --kind or tokenizer.kind.",
            key=str(file),
            value=str(error),
            fix="--kind …",
        ) from error
    return pieces


def huggingface_codec(file: Path) -> HuggingFaceCodec:
    """Load a ``tokenizer.json``.

    Raises:
        DataError: The library cannot read it.
    """
    try:
        return HuggingFaceCodec(tokenizers.Tokenizer.from_file(str(file)))
    # The library raises bare Exception for every mistake in the file.
    except Exception as error:
        raise DataError(
            f"{file} is no tokenizer.json of the Hugging Face tokenizers library: {error}.\n"
            "  Check tokenizer.path and tokenizer.kind.",
            key=str(file),
            value=str(error),
        ) from error


def find_file(path: Path, *patterns: str) -> Path:
    """Find a vocabulary file: the path itself, or the one file of a folder that fits a pattern.

    Args:
        path: File or folder.
        *patterns: Globs in order of preference.

    Raises:
        DataError: Nothing there fits, or several files do.
    """
    if is_file(path):
        return path
    for pattern in patterns:
        matches = sorted(path.glob(pattern))
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise DataError(
                f"{path} holds {' and '.join(match.name for match in matches)}: which one?\n"
                f"  Name the file itself: {matches[0]}",
                key=str(path),
                value=" ".join(match.name for match in matches),
                fix=str(matches[0]),
            )
    wanted = " or ".join(patterns)
    problem = "holds no"
    if not exists(path):
        problem = "does not exist; it should be a vocabulary, or a folder with"
    raise DataError(
        f"{path} {problem} {wanted}.\n"
        "  Check tokenizer.path, or make a new tokenizer with glm-dist tokenizer train.",
        key=str(path),
        fix="glm-dist tokenizer train",
    )


def hash_files(files: Sequence[Path]) -> str:
    """Hash contents in order. Returns hexadecimal SHA-256."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
