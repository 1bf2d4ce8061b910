"""Files on disk: whole or absent, locked, hashed, and errors in words.

A path can be unusable in ways that have nothing to do with its content: no permission on a folder
above it, a name that is too long, a full or read-only disk. ``exists``, ``is_file`` and ``is_dir``
raise a ``FileError`` for those, where pathlib's raise an exception that no user can read.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from glm_dist.errors import GlmDistError

log = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk or a used-up quota."""

HASH_BLOCK_BYTES = 64 << 20
"""Bytes of a token file under one hash of its manifest."""

READ_BYTES = 1 << 20


class FileError(GlmDistError):
    """A path that cannot be looked at or written to, whatever it holds."""


class LockedError(Exception):
    """Another process holds the lock."""

    def __init__(self, holder: str) -> None:
        """Keep who holds it: host and process, as the holder wrote them."""
        super().__init__(holder)
        self.holder = holder


def exists(path: str | Path) -> bool:
    """Return True if there is a file or folder of that name.

    Raises:
        FileError: A folder above it may not be entered, or the name is too long.
    """
    return _mode(path) != 0


def is_file(path: str | Path) -> bool:
    """Return True if there is a file of that name, or a link to one.

    Raises:
        FileError: As ``exists``.
    """
    return stat.S_ISREG(_mode(path))


def is_dir(path: str | Path) -> bool:
    """Return True if there is a folder of that name, or a link to one.

    Raises:
        FileError: As ``exists``.
    """
    return stat.S_ISDIR(_mode(path))


def _mode(path: str | Path) -> int:
    """Type and permissions of a file; 0 if there is none."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except ValueError:  # a null character, which no name can hold
        return 0
    except OSError as error:
        if error.errno == errno.ELOOP:
            return 0
        if error.errno == errno.ENAMETOOLONG:
            problem, fix, hint = "its name is too long", "", "Choose a shorter name."
        elif isinstance(error, PermissionError):
            problem, fix = "this user may not enter one of its folders", f"namei -l {path}"
            hint = f"See which one lacks the x permission: {fix}"
        else:
            problem, fix = str(error.strerror or error), f"ls -ld {path}"
            hint = f"See what is there: {fix}"
        raise FileError(
            f"Cannot look at {_shortened(path)}: {problem}.\n  {hint}",
            key=str(path),
            value=error.strerror,
            fix=fix,
        ) from error


def _shortened(path: str | Path, length: int = 200) -> str:
    text = str(path)
    return text if len(text) <= length else f"{text[:length]}…"


def ensure_writable(folder: str | Path, *, key: str, create: bool = False) -> None:
    """Check that files can be created in a folder, by creating one.

    Permissions alone are not enough: they let root write to a read-only disk.

    Args:
        folder: Existing or future folder; the nearest existing one above it is tried.
        key: Option or configuration key that names the folder.
        create: Whether to create the folder.

    Raises:
        FileError: No file can be created there.
    """
    place = Path(folder)
    try:
        if create:
            place.mkdir(parents=True, exist_ok=True)
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place, prefix=".glm-dist-"):
            pass
    except OSError as error:
        remedy = "Free space there" if error.errno in NO_ROOM else "Make it writable"
        raise FileError(
            f"Cannot write to {_shortened(folder)}: {error.strerror or error}.\n"
            f"  {remedy}, or choose another {key}.",
            key=key,
            value=str(folder),
            fix=f"{remedy.lower()}, or choose another {key}",
        ) from error


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Write files beside their names, and give them those names when all of them are whole.

    A crash at any time leaves the old files or the new ones; between the renames of several files
    it may leave some of each. After an exception the old files remain and nothing else.

    Args:
        paths: Names to write to, in the order in which they are to appear.

    Yields:
        Where to write each of them: in the same folder.
    """
    beside = tuple(path.with_name(f"{path.name}.{os.getpid()}.tmp") for path in paths)
    try:
        yield beside
        for file in beside:
            _fsync(file, os.O_RDONLY)
        for file, path in zip(beside, paths, strict=True):
            os.replace(file, path)
        for folder in {path.parent for path in paths}:
            fsync_folder(folder)
    finally:
        for file in beside:
            file.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file so that a crash leaves its old content or the new one, never a part.

    Args:
        path: File to write.
        content: Text is written as UTF-8.

    Raises:
        OSError: The file cannot be written; the old one is untouched.
    """
    with replacing(path) as (beside,):
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_result(path: Path, content: str) -> None:
    """Write a file that a command line names, wherever the name leads.

    Links are followed, and what is no regular file, such as /dev/stdout, is written to, not
    replaced.

    Args:
        path: As typed.
        content: Written as UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    if exists(path) and not is_file(path):
        with path.open("w", encoding="utf-8") as stream:
            stream.write(content)
    else:
        write_atomically(path.resolve(), content)


def check_absent(path: Path, *, key: str) -> None:
    """Refuse a name that is taken, by anything.

    Args:
        path: Future file or folder.
        key: Option or argument that names it.

    Raises:
        FileError: There is something of that name.
    """
    if exists(path) or path.is_symlink():
        raise FileError(
            f"{path} exists already, and nothing is ever replaced.\n"
            f"  Choose another {key}, or remove it.",
            key=key,
            value=str(path),
            fix=f"choose another {key}",
        )


@contextmanager
def new_folder(path: Path, *, key: str) -> Iterator[Path]:
    """Write a folder beside its name, and give it that name when it is whole.

    After an exception there is nothing of it.

    Args:
        path: Future folder.
        key: Option or argument that names it.

    Yields:
        An empty folder on the same disk.

    Raises:
        FileError: The name is taken, or nothing can be written there.
    """
    check_absent(path, key=key)
    new_parents = [parent for parent in path.absolute().parents if not exists(parent)]
    ensure_writable(path.parent, key=key, create=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.mkdir()
    try:
        yield beside
        for folder, _, names in os.walk(beside):
            for name in names:
                _fsync(Path(folder, name), os.O_RDONLY)
            fsync_folder(Path(folder))
        check_absent(path, key=key)  # rename would replace an empty folder
        beside.rename(path)
        fsync_folder(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in new_parents:
            if not any(parent.iterdir()):
                parent.rmdir()


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable, as fsync does for the content of a file."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path) -> IO[str] | None:
    """Lock a file for this process, and note in it which process that is.

    The lock is of the POSIX kind: it also holds between hosts that share a file system, and forked
    workers do not inherit it. It ends with the process, or when the result is closed.

    Args:
        path: Lock file; created if missing, never removed.

    Returns:
        The open file; None, with a warning in the log, if the file system has no locks.

    Raises:
        LockedError: Another process holds it.
        OSError: The file cannot be written.
    """
    stream = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.seek(0)
        holder = stream.read().strip()
        stream.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise LockedError(holder or "unknown") from error
        log.warning("could not lock path=%s reason=%s", path, error)
        return None
    stream.truncate(0)
    stream.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
    stream.flush()
    return stream


def sha256_of(path: Path) -> str:
    """Hash a file of any size. Returns hexadecimal SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def block_hashes(path: Path, block_bytes: int = HASH_BLOCK_BYTES) -> list[str]:
    """Hash a file block by block, so that damage has a place.

    Args:
        path: File of any size.
        block_bytes: Bytes under one hash; the last block may be shorter.

    Returns:
        Hexadecimal SHA-256 of each block.
    """
    hashes = []
    with path.open("rb") as stream:
        while data := stream.read(min(READ_BYTES, block_bytes)):
            digest, missing = hashlib.sha256(data), block_bytes - len(data)
            while missing and (data := stream.read(min(READ_BYTES, missing))):
                digest.update(data)
                missing -= len(data)
            hashes.append(digest.hexdigest())
    return hashes
