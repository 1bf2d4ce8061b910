"""Manifest of a checkpoint: its metadata, and the size and hash of every file.

``manifest.json`` is written last, so a folder without it is incomplete. It lists every other file
with size and SHA-256, and contains a checksum of itself.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from glm_dist.checkpoint.folders import MANIFEST_NAME
from glm_dist.config.schema import RunConfig
from glm_dist.errors import CheckpointError
from glm_dist.files import sha256_of

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

FORMAT_VERSION = 1

WEIGHTS = "model."
"""Prefix of the weights in a checkpoint; the optimizer's moments have other prefixes."""


class DamagedCheckpointError(CheckpointError):
    """Error for a damaged checkpoint; others of the run may be intact."""


@dataclass(frozen=True)
class FileRecord:
    """Size and hash of one file."""

    num_bytes: int
    sha256: str
    """Hexadecimal digest."""


@dataclass(frozen=True)
class TensorRecord:
    """One global tensor."""

    shape: tuple[int, ...]
    dtype: str
    """Name without the prefix ``torch.``."""


@dataclass(frozen=True)
class Manifest:
    """Metadata of a checkpoint, readable without its tensors."""

    step: int
    """Optimizer steps done, skipped fp16 updates included."""
    layout: dict[str, int]
    """Sizes of the parallel axes that wrote it, for information: any layout can read it."""
    extra: dict[str, Json]
    """State of the run that is the same on every rank (rows consumed, data fingerprint, ...)."""
    tensors: dict[str, TensorRecord]
    files: dict[str, FileRecord]
    """All files except the manifest, by name relative to the checkpoint's folder."""
    format_version: int = FORMAT_VERSION
    config_version: int = RunConfig.config_version
    """Version of the configuration, for information: tensors are read by name and shape."""
    written_by: str = (
        f"python {platform.python_version()}, torch {importlib.metadata.version('torch')}"
    )

    @property
    def has_optimizer(self) -> bool:
        """True if there is more than weights, so that training can go on from it."""
        return any(not name.startswith(WEIGHTS) for name in self.tensors)

    def to_json(self) -> str:
        """Return the text of the manifest file.

        Raises:
            TypeError: ``extra`` holds a value that JSON cannot represent.
            ValueError: ``extra`` holds a NaN or an infinity.
        """
        content = asdict(self)
        return json.dumps(
            {"checksum": _checksum(content), **content}, indent=1, sort_keys=True, allow_nan=False
        )


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a checkpoint, without looking at its other files.

    Raises:
        DamagedCheckpointError: It is missing or was changed.
        CheckpointError: It has another format version.
    """
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _damaged(folder, f"no {MANIFEST_NAME}, so its save never finished") from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"unreadable {MANIFEST_NAME} ({error})") from error
    if not isinstance(content, dict):
        raise _damaged(folder, f"{MANIFEST_NAME} without fields")
    _check_version(path, content)
    if content.pop("checksum", None) != _checksum(content):
        raise _damaged(folder, f"{MANIFEST_NAME} that was changed after it was written")
    return Manifest(
        **{
            **content,
            "tensors": {
                name: TensorRecord(shape=tuple(record["shape"]), dtype=record["dtype"])
                for name, record in content["tensors"].items()
            },
            "files": {name: FileRecord(**record) for name, record in content["files"].items()},
        }
    )


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
            num_bytes = path.stat().st_size
            if num_bytes != record.num_bytes:
                problems.append(f"{name} has {num_bytes} of {record.num_bytes} bytes")
            elif read_content and sha256_of(path) != record.sha256:
                problems.append(f"{name} was changed: its SHA-256 is not the one in the manifest")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error})")
    return problems


def damage_error(folder: Path, problems: Iterable[str]) -> DamagedCheckpointError:
    """Build one error for all problems of a checkpoint's files."""
    return _damaged(folder, "; ".join(problems))


def _damaged(folder: Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{folder} is damaged: {reason}.\n"
        "  Use an older checkpoint of the run; a resumed run automatically uses the newest"
        " undamaged one.",
        key=str(folder),
        value=reason,
        fix="",
    )


def _check_version(path: Path, content: dict[str, Any]) -> None:
    found = content.get("format_version")
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {found}, but this glm_dist reads {FORMAT_VERSION} only.\n"
            "  Use the version of glm_dist the run was started with; provenance.json in the run "
            "folder names it.",
            key="format_version",
            value=found,
            fix="use the version of glm_dist that provenance.json names",
        )


def _checksum(content: Mapping[str, object]) -> str:
    """Hash a canonical form, so that the checksum survives a round trip through JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
