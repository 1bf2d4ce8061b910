"""Corpora that the official GLM code has tokenised (``<path>.lazy/``) into ours.

Such a folder holds ``text`` and ``prompt``, token ids of all documents end to end as little-endian
int32, and ``text.len.pkl`` and ``prompt.len.pkl``, a pickled Python list of lengths each. A prompt
(the question of a question-answer corpus) is joined to its text; the official loader does not train
on it in some rows, ours does.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.corpus.indexed import bin_path, idx_path, token_type_for, write_index
from glm_dist.data.corpus.manifest import Manifest, manifest_path, write_manifest
from glm_dist.data.corpus.origins import origins_path
from glm_dist.data.prepare.output import check_prefix, refuse_existing, writing
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import DataError
from glm_dist.files import block_hashes, ensure_writable, is_file, replacing, sha256_of

DOCUMENTS_AT_A_TIME = 10_000


def import_lazy(
    folder: Path, output: str | Path, tokenizer: Tokenizer, *, overwrite: bool = False
) -> Manifest:
    """Write the documents of a .lazy folder as a corpus.

    Args:
        folder: The official folder.
        output: Prefix to write.
        tokenizer: The tokenizer the folder was made with; gives [CLS] and the end of text.
        overwrite: Replace a corpus that is there.

    Raises:
        DataError: Files are missing, contradict each other, or hold ids the tokenizer lacks;
            ``output`` is no prefix or exists, or the disk is full.
    """
    check_prefix(output)
    if not overwrite:
        refuse_existing(
            [bin_path(output), idx_path(output), manifest_path(output)],
            why="",
            fix="Choose another --output, or replace it with --overwrite.",
        )
    ensure_writable(Path(output).parent, key="--output", create=True)
    with writing(output):
        with replacing(bin_path(output), idx_path(output)) as (tokens, index):
            manifest = _convert(folder, tokenizer, tokens, index)
            for file in (manifest_path(output), origins_path(output)):
                file.unlink(missing_ok=True)
        write_manifest(output, manifest)
    return manifest


def _convert(folder: Path, tokenizer: Tokenizer, tokens: Path, index: Path) -> Manifest:
    """Write the two files of the corpus."""
    token_type = token_type_for(tokenizer.vocab_size)
    lengths = []
    with tokens.open("wb") as stream:
        for document in _documents(folder):
            largest = int(document.max()) if len(document) else 0
            if largest >= tokenizer.vocab_size or (len(document) and int(document.min()) < 0):
                raise DataError(
                    f"{folder} holds token ids that this tokenizer does not have (up to {largest};"
                    f" it has 0 to {tokenizer.vocab_size - 1}).\n"
                    "  Name the tokenizer that the folder was made with: --tokenizer.",
                    key="--tokenizer",
                    value=largest,
                    fix="--tokenizer …",
                )
            if len(document):
                special = tokenizer.special
                ids = np.concatenate(([special.cls], document, [special.eos]))
                stream.write(ids.astype(token_type).tobytes())
                lengths.append(len(ids))
    write_index(index, token_type, np.array(lengths, np.int32))
    return Manifest(
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        documents=len(lengths),
        tokens=int(sum(lengths)),
        sources=[{"path": str(folder), "documents": len(lengths)}],
        options={"imported": "lazy"},
        bin_sha256=block_hashes(tokens),
        idx_sha256=sha256_of(index),
    )


def _documents(folder: Path) -> Iterator[NDArray[np.int32]]:
    """Prompt and text of each document."""
    text, text_lengths = _part(folder, "text")
    has_prompts = is_file(folder / "prompt") and (folder / "prompt").stat().st_size > 0
    prompt, prompt_lengths = _part(folder, "prompt") if has_prompts else (text[:0], None)
    if prompt_lengths is not None and len(prompt_lengths) != len(text_lengths):
        raise DataError(
            f"{folder} holds {len(prompt_lengths)} prompts for {len(text_lengths)} texts.\n"
            "  Copy the whole folder again.",
            key=str(folder),
            value=len(prompt_lengths),
        )
    text_at = prompt_at = 0
    for number, length in enumerate(text_lengths.tolist()):
        before = int(prompt_lengths[number]) if prompt_lengths is not None else 0
        yield np.concatenate(
            (prompt[prompt_at : prompt_at + before], text[text_at : text_at + length])
        )
        text_at += length
        prompt_at += before


def _part(folder: Path, name: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Map one file and read its lengths."""
    file, list_file = folder / name, folder / f"{name}.len.pkl"
    for each in (file, list_file):
        if not is_file(each):
            raise DataError(
                f"{each} is missing; an official .lazy folder holds text and text.len.pkl.\n"
                "  Name the folder itself, whose name ends in .lazy.",
                key=str(each),
            )
    with list_file.open("rb") as stream:
        lengths = _read_lengths(stream, list_file)
    size = file.stat().st_size // 4
    if int(lengths.sum()) != size:
        raise DataError(
            f"{file} holds {size} tokens, but {list_file.name} adds up to {int(lengths.sum())}.\n"
            "  Copy the whole folder again.",
            key=str(file),
            value=size,
        )
    empty = np.zeros(0, np.int32)
    return (np.memmap(file, mode="r", dtype="<i4") if size else empty), lengths


class _NumbersOnly(pickle.Unpickler):
    """Reads lists of numbers; a pickle could otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every class and function."""
        raise pickle.UnpicklingError(f"{module}.{name} is not a number")


def _read_lengths(stream: BinaryIO, file: Path) -> NDArray[np.int64]:
    try:
        return np.array(_NumbersOnly(stream).load(), np.int64).reshape(-1)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError) as error:
        raise DataError(
            f"{file} is no pickled list of lengths: {error}.\n  Copy the whole folder again.",
            key=str(file),
            value=str(error),
        ) from error
