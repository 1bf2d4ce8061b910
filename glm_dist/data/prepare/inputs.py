"""Files that the inputs of a command line name, and the format of each."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
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
SHOWN = 3
"""Files named for each reason to leave some out."""
OF_A_CORPUS = (".bin", ".idx", ".origins")
"""Endings of a prepared corpus."""
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")


@dataclass(frozen=True)
class Selection:
    """Files that inputs name, and files below their folders that are left out."""

    files: list[Path]
    """In order, each once."""
    left_out: dict[str, list[Path]]
    """By reason."""

    def describe(self) -> list[str]:
        """Return a line for each reason, with the first files that are left out for it."""
        lines = []
        for reason, files in self.left_out.items():
            names = ", ".join(map(str, files[:SHOWN]))
            more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
            lines.append(f"left out, {reason}: {names}{more}")
        return lines


def expand_inputs(inputs: Sequence[str]) -> list[Path]:
    """List the files that inputs name; see ``select_inputs``."""
    return select_inputs(inputs).files


def select_inputs(inputs: Sequence[str]) -> Selection:
    """Find the files that paths, folders and patterns name, in order, each once.

    A file that is named twice, by whatever path, is read once. Folders are searched with all
    folders below them, linked ones too, but for hidden ones.

    Args:
        inputs: Files; folders, of which every file with a known suffix is taken; or patterns.
            Files of one folder or pattern are sorted by name.

    Raises:
        DataError: Something names no file, or a file's format is unknown.
    """
    files: dict[Path, Path] = {}  # by real path
    left_out: dict[str, list[Path]] = {}
    for name in inputs:
        path = Path(name)
        if is_dir(path):
            found = []
            for each in _files_below(path):
                reason = _reason_against(each, path)
                if reason is None:
                    found.append(each)
                else:
                    left_out.setdefault(reason, []).append(each)
        elif exists(path):
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        texts = [each for each in found if not _is_of_a_corpus(each)]
        if not texts and not is_file(path):
            raise _no_text(name)
        for text in texts:
            if text.resolve() in files:
                left_out.setdefault("named before", []).append(text)
            files.setdefault(text.resolve(), text)
    if not files:
        raise _no_text(", ".join(inputs))
    for file in files.values():
        kind_of(file)
        _check_readable(file)
    return Selection(list(files.values()), left_out)


def _files_below(folder: Path) -> list[Path]:
    """List all files below a folder, sorted; every folder once, also where links make a circle."""
    found, seen = [], {folder.resolve()}
    for place, folders, names in os.walk(folder, followlinks=True):
        real = {name: (Path(place) / name).resolve() for name in folders}
        folders[:] = [name for name in folders if real[name] not in seen]
        seen |= {real[name] for name in folders}
        found += [Path(place) / name for name in names]
    return sorted(found)


def _reason_against(file: Path, folder: Path) -> str | None:
    """Return why a file below a folder is no input; None if it is one."""
    if _is_of_a_corpus(file) or file.name.endswith(OF_A_CORPUS):
        return "part of a corpus"
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return "hidden"
    return None if _kind_or_none(file) is not None else "of an unknown format"


def _no_text(name: str) -> DataError:
    return DataError(
        f"{name} names no text file.\n"
        f"  Give files, folders or patterns; the names of texts end with {', '.join(SUFFIXES)}, and"
        f" after that {' or '.join(COMPRESSIONS)} if they are compressed.",
        key="inputs",
        value=name,
    )


def _is_of_a_corpus(file: Path) -> bool:
    """Return True if a preparation wrote the file."""
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


def _check_readable(file: Path) -> None:
    if not (is_file(file) and os.access(file, os.R_OK)):
        raise DataError(
            f"{file} cannot be read.\n"
            f"  Check the link or the permissions, or leave it out: ls -l {file}",
            key=str(file),
            fix=f"ls -l {file}",
        )


def _kind_or_none(file: Path) -> FileKind | None:
    plain = file.with_suffix("") if file.suffix.lower() in COMPRESSIONS else file
    return SUFFIXES.get(plain.suffix.lower())
