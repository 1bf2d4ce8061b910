"""Output of a command: name and folder checked before any work, failures in words."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from glm_dist.errors import DataError
from glm_dist.files import ensure_writable, exists, is_dir


def check_prefix(output: str | Path) -> None:
    """Refuse a prefix of a corpus whose files would get no name, or an ending twice.

    Args:
        output: Prefix, as typed.

    Raises:
        DataError: It is empty, a folder, or the name of a .bin or .idx file.
    """
    text = str(output)
    if not _has_name(text) or text.endswith((".bin", ".idx")):
        raise DataError(
            f"--output {text!r} is not the prefix of a corpus: a folder, then a name without .bin"
            " or .idx.\n"
            "  Set --output <folder>/<name>; the files are <name>.bin, .idx and .json.",
            key="--output",
            value=text,
            fix="--output <folder>/<name>",
        )


def refuse_existing(files: Sequence[Path], *, why: str, fix: str) -> None:
    """Replace nothing unasked.

    Args:
        files: What would be written.
        why: What more the message says of one that exists.
        fix: How to go on.

    Raises:
        DataError: One of them exists.
    """
    for file in files:
        if exists(file):
            raise DataError(f"{file} exists already{why}.\n  {fix}", key=str(file), fix=fix)


def output_file(output: str | Path, *, option: str = "--output") -> Path:
    """Take a path as that of a file to write.

    Args:
        output: Path, as typed.
        option: Option that names it.

    Returns:
        The path; its folder exists.

    Raises:
        DataError: It is a folder, or its folder cannot be made or written to.
    """
    file = Path(output)
    if not _has_name(str(output)) or is_dir(file):
        raise DataError(
            f"{option} {str(output)!r} is {'a folder' if is_dir(file) else 'no path of a file'}.\n"
            f"  Add the name of the file to {option}.",
            key=option,
            value=str(output),
            fix=f"{option} <folder>/<name>",
        )
    ensure_writable(file.parent, key=option, create=True)
    return file


@contextmanager
def writing(output: str | Path, *, resumes: bool = False) -> Iterator[None]:
    """Say in one message why writing failed.

    Args:
        output: Path of the file, or the common prefix of several.
        resumes: Whether the command goes on where it stopped.

    Raises:
        DataError: The system refused to read or write something, such as on a full disk.
    """
    try:
        yield
    except OSError as error:
        again = "goes on where it stopped" if resumes else "starts over"
        fix = f"Make room, or remove the cause, and type the command again: it {again}."
        raise DataError(
            f"Cannot read or write {error.filename or output}: {error.strerror or error}.\n  {fix}",
            key=str(error.filename or output),
            value=error.strerror,
            fix=fix,
        ) from error


def _has_name(text: str) -> bool:
    return bool(text.strip()) and text.rpartition("/")[2] not in ("", ".", "..")
