"""Manifest of a checkpoint: its metadata, and the size and hash of every file.

``manifest.json`` is written last, so a folder without it is incomplete. It lists every other file
with size and SHA-256, every tensor with its boxes, and contains a checksum of itself.
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glm_dist.checkpoint.fields import is_plain_name, manifest_of
from glm_dist.checkpoint.folders import MANIFEST_NAME, step_of
from glm_dist.checkpoint.records import FORMAT_VERSION, checksum
from glm_dist.checkpoint.records import WEIGHTS as WEIGHTS
from glm_dist.checkpoint.records import BoxRecord as BoxRecord
from glm_dist.checkpoint.records import FileRecord as FileRecord
from glm_dist.checkpoint.records import Json as Json
from glm_dist.checkpoint.records import Manifest as Manifest
from glm_dist.checkpoint.records import TensorRecord as TensorRecord
from glm_dist.errors import CheckpointError
from glm_dist.files import sha256_of

MOST_BYTES = 1 << 30
"""Largest manifest that is read; a box takes about 60 bytes in it."""

_READABLE = (1, FORMAT_VERSION)

_UNREADABLE = "cannot be read now"

_LONGEST_REASON = 2000
"""Characters of a reason that are shown: names in a forged manifest may be of any length."""


class DamagedCheckpointError(CheckpointError):
    """Error for a damaged checkpoint; others of the run may be intact."""


class UnreadableCheckpointError(DamagedCheckpointError):
    """Error for a checkpoint that the system could not read now; it may be intact."""


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a checkpoint, without looking at its other files.

    Raises:
        DamagedCheckpointError: It is missing, was changed, or belongs to another step than the
            folder's name says.
        CheckpointError: It has another format version.
    """
    path = folder / MANIFEST_NAME
    try:
        problem = file_problem(path)
        if problem is not None:
            raise damage_error(folder, [f"{MANIFEST_NAME} {problem}"])
        if path.stat().st_size > MOST_BYTES:
            raise damage_error(folder, [f"{MANIFEST_NAME} of more than {MOST_BYTES} bytes"])
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise damage_error(folder, [f"no {MANIFEST_NAME}, so its save never finished"]) from None
    except OSError as error:
        raise damage_error(folder, [f"{MANIFEST_NAME} {_UNREADABLE} ({error})"]) from error
    except ValueError as error:
        raise damage_error(folder, [f"unreadable {MANIFEST_NAME} ({error})"]) from error
    except RecursionError:
        raise damage_error(folder, [f"{MANIFEST_NAME} with lists inside lists"]) from None
    if not isinstance(content, dict):
        raise damage_error(folder, [f"{MANIFEST_NAME} without fields"])
    _check_version(path, content)
    try:
        is_changed = content.pop("checksum", None) != checksum(content)
        manifest = None if is_changed else manifest_of(content)
    except ValueError as error:
        raise damage_error(folder, [f"{MANIFEST_NAME} with {error}"]) from error
    if manifest is None:
        raise damage_error(folder, [f"{MANIFEST_NAME} that was changed after it was written"])
    named = step_of(folder)
    if named is not None and named != manifest.step:
        raise damage_error(folder, [f"{folder.name} holds step {manifest.step}"])
    return manifest


def file_problem(path: Path) -> str | None:
    """Say why a file must not be opened, as a predicate; None if it is a regular file.

    Raises:
        OSError: It does not exist or cannot be looked at.
    """
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode):
        return None
    return "is a link" if stat.S_ISLNK(mode) else "is no regular file"


def find_problems(
    folder: Path, files: Mapping[str, FileRecord], *, read_content: bool
) -> list[str]:
    """Compare files on disk with their records.

    Args:
        folder: The checkpoint.
        files: Records by name; a rank may pass its share of them.
        read_content: Hash the files; otherwise only sizes are compared.

    Returns:
        One sentence per damaged file; empty if all are intact.
    """
    problems = []
    for name, record in sorted(files.items()):
        path = folder / name
        try:
            assert is_plain_name(name)
            problem = file_problem(path)
            if problem is not None:
                problems.append(f"{name} {problem}")
                continue
            num_bytes = path.stat().st_size
            if num_bytes != record.num_bytes:
                problems.append(f"{name} has {num_bytes} of {record.num_bytes} bytes")
            elif read_content and sha256_of(path) != record.sha256:
                problems.append(f"{name} was changed: its SHA-256 is not the one in the manifest")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} {_UNREADABLE} ({error})")
    return problems


def damage_error(folder: Path | str, problems: Iterable[str]) -> DamagedCheckpointError:
    """Build one error for all problems of a checkpoint's files."""
    text = "; ".join(problems)[:_LONGEST_REASON]
    kind = UnreadableCheckpointError if _UNREADABLE in text else DamagedCheckpointError
    reason = "".join(each if each.isprintable() else "?" for each in text)
    return kind(
        f"{folder} is damaged: {reason}.\n"
        "  Use an older checkpoint of the run; a resumed run automatically uses the newest"
        " undamaged one.",
        key=str(folder),
        value=reason,
        fix="",
    )


def all_damaged(directory: Path | str, names: Sequence[str], *, fix: str) -> CheckpointError:
    """Build the error for a folder that holds damaged checkpoints only.

    Args:
        directory: The run's checkpoints folder, or its URL.
        names: Its damaged checkpoints.
        fix: Another way than to restore them, to follow "or".
    """
    listed = ", ".join(names)
    return CheckpointError(
        f"All checkpoints in {directory} are damaged ({listed}); the log has the reasons.\n"
        f"  Restore their files and their names, or {fix}.",
        key=str(directory),
        value=listed,
        fix=fix,
    )


def _check_version(path: Path, content: dict[str, Any]) -> None:
    found = content.get("format_version")
    if found not in _READABLE or isinstance(found, bool):
        versions = " and ".join(map(str, _READABLE))
        raise CheckpointError(
            f"{path} has format_version {found}, but this glm_dist reads {versions} only.\n"
            "  Use the version of glm_dist the run was started with; provenance.json in the run "
            "folder names it.",
            key="format_version",
            value=found,
            fix="use the version of glm_dist that provenance.json names",
        )
