"""The tokenizer that a run keeps in its own folder, so that the folder can be moved and read.

Weights mean nothing with other ids: whoever reads a run opens its tokenizer here, and is refused
one that the checkpoint was not trained with.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from glm_dist.config.schema import TokenizerConfig
from glm_dist.data.tokenizer.tokenizer import (
    Tokenizer,
    TokenizerSpec,
    load_tokenizer,
    tokenizer_files,
)
from glm_dist.data.tokenizer.vocabularies import hash_files
from glm_dist.errors import DataError
from glm_dist.files import exists, fsync_folder, is_dir, is_file, write_atomically

TOKENIZER_FOLDER = "tokenizer"
"""Folder of the tokenizer's files inside a run folder."""


def store_tokenizer(config: TokenizerConfig, run_dir: Path) -> None:
    """Copy a tokenizer's files into the folder of the run that trains with them.

    Does nothing where the same files are there already.

    Args:
        config: Of the run.
        run_dir: The run's folder.

    Raises:
        DataError: The files are missing.
        OSError: They cannot be copied.
    """
    files = tokenizer_files(TokenizerSpec.of(config))
    folder = run_dir / TOKENIZER_FOLDER
    copies = [folder / name for name in files]
    if all(map(is_file, copies)) and hash_files(copies) == hash_files(list(files.values())):
        return
    # Whole or not at all: a reader that finds no folder looks where the files came from.
    beside = run_dir / f".{TOKENIZER_FOLDER}.tmp"
    for old in (beside, folder):
        if is_dir(old):
            shutil.rmtree(old)
    beside.mkdir()
    for name, file in files.items():
        write_atomically(beside / name, file.read_bytes())
    beside.rename(folder)
    fsync_folder(run_dir)


def load_stored_tokenizer(
    config: TokenizerConfig,
    run_dir: Path,
    *,
    checkpoint: Mapping[str, object],
    path: Path | None = None,
) -> Tokenizer:
    """Open the tokenizer of a trained run.

    Args:
        config: Of the run, as it was saved.
        run_dir: The run's folder, wherever it is now.
        checkpoint: What the checkpoint says of the run (``extra`` of its manifest).
        path: The tokenizer's files; None: those in the run's folder or, in a folder that an older
            version left, where they were during training.

    Raises:
        DataError: The files are gone, or they are not what the checkpoint was trained with.
    """
    stored = run_dir / TOKENIZER_FOLDER
    if path is None:
        path = stored if is_dir(stored) else Path(config.path)
        if not exists(path):
            raise DataError(
                f"{run_dir} was saved without its tokenizer, and {path}, where it was during "
                "training, is gone.\n"
                f"  Copy the tokenizer's files into {stored}, or name them with --tokenizer <path>",
                key="tokenizer.path",
                value=str(path),
                fix=f"copy the tokenizer's files into {stored}",
            )
    tokenizer = load_tokenizer(replace(config, path=str(path)))
    data = checkpoint.get("data")
    trained = data.get("tokenizer") if isinstance(data, Mapping) else None
    if trained is not None and tokenizer.fingerprint != trained:
        raise DataError(
            f"{path} is not the tokenizer that {run_dir} was trained with, so ids would mean other "
            f"text: it is {tokenizer.fingerprint}, the checkpoint names {trained}.\n"
            f"  Restore the tokenizer's files in {stored}, or name them with --tokenizer <path>",
            key="tokenizer.path",
            value=tokenizer.fingerprint,
            fix=f"restore the tokenizer's files in {stored}",
        )
    return tokenizer
