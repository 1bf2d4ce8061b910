"""What a command writes: its name and folder checked before any work, its failures in words."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from glm_dist.errors import DataError


def make_output_folder(output: str | Path) -> None:
    """Make the folder of a file that is going to be written.

    Args:
        output: Path of the file, or the common prefix of several.

    Raises:
        DataError: The folder cannot be made or written to.
    """
    folder = Path(output).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions tell root nothing about /proc or a read-only disk; making a file does.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".glm-dist-"):
            pass
    except OSError as error:
        raise DataError(
            key="--output",
            found=f"{output} ({error.strerror or error})",
            expected="a path in a folder that can be written to",
            fix="choose another --output",
        ) from error


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
        if file.exists():
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
    if not _has_name(str(output)) or file.is_dir():
        raise DataError(
            key="--output",
            found=f"{str(output)!r}{', a folder' if file.is_dir() else ''}",
            expected="the path of a file",
            fix="add the file's name to --output",
        )
    make_output_folder(file)
    return file


@contextmanager
def writing(
    output: str | Path, *, aside: Sequence[Path] = (), resumes: bool = False
) -> Iterator[None]:
    """Say in one message why writing failed, and leave no half-written file behind.

    Args:
        output: Path of the file, or the common prefix of several.
        aside: Files that are renamed when they are whole; removed where they are not.
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
    finally:
        for file in aside:
            file.unlink(missing_ok=True)


def _has_name(text: str) -> bool:
    return bool(text.strip()) and text.rpartition("/")[2] not in ("", ".", "..")
