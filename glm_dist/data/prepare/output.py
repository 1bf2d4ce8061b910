"""What a command writes: its name and folder checked before any work, its failures in words."""

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
            key="--output",
            found=repr(text),
            expected="the path of a corpus without .bin or .idx, with a name after its folder",
            fix="set --output <folder>/<name>; the files are <name>.bin, .idx and .json",
        )


def refuse_existing(files: Sequence[Path], *, found: str, expected: str, fix: str) -> None:
    """Replace nothing unasked.

    Args:
        files: What would be written.
        found: What the message says of one that is there.
        expected: What may be there.
        fix: How to go on.

    Raises:
        DataError: One of them exists.
    """
    for file in files:
        if exists(file):
            raise DataError(key=str(file), found=found, expected=expected, fix=fix)


def output_file(output: str | Path) -> Path:
    """Take a path as that of a file to write.

    Args:
        output: Path, as typed.

    Returns:
        The path; its folder exists.

    Raises:
        DataError: It is a folder, or its folder cannot be made or written to.
    """
    file = Path(output)
    if not _has_name(str(output)) or is_dir(file):
        raise DataError(
            key="--output",
            found=f"{str(output)!r}{', a folder' if is_dir(file) else ''}",
            expected="the path of a file",
            fix="add the file's name to --output",
        )
    ensure_writable(file.parent, key="--output", create=True)
    return file


@contextmanager
def writing(output: str | Path, *, resumes: bool = False) -> Iterator[None]:
    """Say in one message why writing failed.

    Args:
        output: Path of the file, or the common prefix of several.
        resumes: Whether the command goes on where it stopped.

    Raises:
        DataError: The system refused to read or write something, such as for want of room.
    """
    try:
        yield
    except OSError as error:
        again = "it goes on where it stopped" if resumes else "it begins anew"
        raise DataError(
            key=str(error.filename or output),
            found=f"not readable or writable ({error.strerror or error})",
            expected=f"files that can be read, and room to write {output}",
            fix=f"make room or mend the cause, and type the command again; {again}",
        ) from error


def _has_name(text: str) -> bool:
    return bool(text.strip()) and text.rpartition("/")[2] not in ("", ".", "..")
