"""Which files the inputs of a command line name, and of which format each is."""

import glob
import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from glm_dist.data.corpus.manifest import PARTIAL, is_manifest
from glm_dist.errors import DataError
from glm_dist.files import exists, is_dir, is_file


class FileKind(Enum):
    """Formats of input files."""

    jsonl = "jsonl"
    text = "text"
    parquet = "parquet"


SUFFIXES = {
    ".jsonl": FileKind.jsonl,
    ".json": FileKind.jsonl,
    ".ndjson": FileKind.jsonl,
    ".txt": FileKind.text,
    ".text": FileKind.text,
    ".parquet": FileKind.parquet,
}
COMPRESSIONS = (".gz", ".zst")


def expand_inputs(inputs: Sequence[str]) -> list[Path]:
    """List the files that paths, folders and patterns name, in order, each once.

    What a preparation wrote (manifests, unfinished corpora) is left out, so that a folder may hold
    texts and corpora. A file that is named twice, by whatever path, is read once.

    Args:
        inputs: Files; folders, of which every file with a known suffix is taken; or patterns.
            Files of one folder or pattern are sorted by name.

    Raises:
        DataError: Something names no file, or a file's format is unknown.
    """
    files: dict[Path, Path] = {}  # by real path
    for name in inputs:
        path = Path(name)
        if is_dir(path):
            found = [each for each in sorted(path.rglob("*")) if _is_text(each)]
        elif exists(path):
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        texts = [each for each in found if not _is_of_a_corpus(each)]
        if not texts and not is_file(path):
            raise _no_text(name)
        for text in texts:
            files.setdefault(text.resolve(), text)
    if not files:
        raise _no_text(", ".join(inputs))
    for file in files.values():
        kind_of(file)
        _check_readable(file)
    return list(files.values())


def _no_text(name: str) -> DataError:
    return DataError(
        f"{name} names no text file.\n"
        f"  Give files, folders or patterns; the names of texts end with {', '.join(SUFFIXES)}, and"
        f" after that {' or '.join(COMPRESSIONS)} if they are compressed.",
        key="inputs",
        value=name,
    )


def _is_of_a_corpus(file: Path) -> bool:
    """Whether a preparation wrote the file."""
    return file.parent.suffix == PARTIAL or (file.suffix == ".json" and is_manifest(file))


def kind_of(file: Path) -> FileKind:
    """Tell a file's format by its suffix.

    Raises:
        DataError: The suffix is unknown.
    """
    kind = _kind_or_none(file)
    if kind is None:
        raise DataError(
            f"The suffix {file.suffix!r} of {file} names no known format: {', '.join(SUFFIXES)},"
            f" also with {' or '.join(COMPRESSIONS)}.\n  Rename or convert the file.",
            key=str(file),
            value=file.suffix,
        )
    return kind


def _is_text(file: Path) -> bool:
    return _kind_or_none(file) is not None and not is_dir(file)


def _check_readable(file: Path) -> None:
    if not (is_file(file) and os.access(file, os.R_OK)):
        raise DataError(
            f"{file} cannot be read.\n"
            f"  Check the link or the permissions, or leave it out: ls -l {file}",
            key=str(file),
            fix=f"ls -l {file}",
        )


def _kind_or_none(file: Path) -> FileKind | None:
    plain = file.with_suffix("") if file.suffix in COMPRESSIONS else file
    return SUFFIXES.get(plain.suffix.lower())
