"""Files of an official checkpoint: ``<folder>/<tag>/mp_rank_XX_model_states.pt`` and trackers.

The tag is an iteration, or ``best``. Published archives are the inner folder alone. No torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from glm_dist.errors import CheckpointError
from glm_dist.files import is_dir, is_file

TRACKERS = ("latest_checkpointed_iteration.txt", "latest")
"""Files that hold the newest tag; the official code reads the first, DeepSpeed the second."""

_PART = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_MAX_TRACKER_BYTES = 256


@dataclass(frozen=True)
class OfficialFiles:
    """The parts of one official checkpoint."""

    folder: Path
    """Folder of the parts."""
    tag: str
    """The folder's name: an iteration, or a word such as ``best``."""
    parts: tuple[Path, ...]
    """One file of each model-parallel rank, in their order."""

    @property
    def iteration(self) -> int | None:
        """The iteration that the tag names; None if it is a word."""
        return int(self.tag) if re.fullmatch(r"\d{1,18}", self.tag) else None


def part_name(rank: int) -> str:
    """Return the file name of a model-parallel rank's part."""
    return f"mp_rank_{rank:02d}_model_states.pt"


def holds_official(folder: Path) -> bool:
    """Return True if a folder looks like an official checkpoint."""
    has_tracker = any(is_file(folder / name) for name in TRACKERS)
    return has_tracker or bool(_parts(folder)) or bool(_tags(folder))


def find_official(source: Path) -> OfficialFiles:
    """Find the parts of a checkpoint.

    Args:
        source: A folder with trackers, the folder of a tag, or a file. A file of another name than
            the official code's is a checkpoint of one part.

    Raises:
        CheckpointError: A tracker is damaged, its folder is missing, several tags are there and no
            tracker chooses one, or a part is missing.
    """
    if is_file(source):
        if _PART.fullmatch(source.name):
            return _of_folder(source.parent)
        return OfficialFiles(source.parent, source.stem, (source,))
    if _parts(source):
        return _of_folder(source)
    tracked = {name: _read_tag(source / name) for name in TRACKERS if is_file(source / name)}
    if len(set(tracked.values())) > 1:
        said = " and ".join(f"{name} says {tag}" for name, tag in tracked.items())
        first = next(iter(tracked.values()))
        raise CheckpointError(
            f"{source} does not tell its newest checkpoint: {said}.\n"
            f"  Name the folder of one of them: {source / first}",
            key="SOURCE",
            value=said,
            fix=str(source / first),
        )
    for name, tag in tracked.items():
        if not _parts(source / tag):
            raise CheckpointError(
                f"{source / name} names {tag}, and {source / tag} has no {part_name(0)}.\n"
                "  Restore that folder, or name another one.",
                key=str(source / name),
                value=tag,
            )
        return _of_folder(source / tag)
    return _of_folder(source / _only_tag(source))


def _only_tag(source: Path) -> str:
    tags = _tags(source)
    if len(tags) == 1:
        return tags[0]
    if not tags:
        raise CheckpointError(
            f"{source} holds no {part_name(0)}, and no folder with one.\n"
            "  Name the folder of an official checkpoint.",
            key="SOURCE",
            value=str(source),
        )
    raise CheckpointError(
        f"{source} holds several checkpoints and no tracker: {', '.join(tags)}.\n"
        f"  Name one of them: {source / tags[-1]}",
        key="SOURCE",
        value=", ".join(tags),
        fix=str(source / tags[-1]),
    )


def _tags(source: Path) -> list[str]:
    if not is_dir(source):
        return []
    return sorted(path.name for path in source.iterdir() if is_dir(path) and _parts(path))


def _read_tag(tracker: Path) -> str:
    with tracker.open("rb") as stream:
        content = stream.read(_MAX_TRACKER_BYTES + 1)
    tag = content.decode(errors="replace").strip()
    is_name = len(content) <= _MAX_TRACKER_BYTES and tag.isprintable() and "/" not in tag
    if not is_name or tag in ("", ".", ".."):
        raise CheckpointError(
            f"{tracker} does not hold the name of a folder: {tag[:40]!r}.\n"
            f"  Name the checkpoint's own folder instead of {tracker.parent}.",
            key=str(tracker),
            value=tag[:40],
        )
    return tag


def _of_folder(folder: Path) -> OfficialFiles:
    found = _parts(folder)
    missing = sorted(set(range(max(found) + 1)) - found.keys())
    if missing:
        names = ", ".join(part_name(rank) for rank in missing[:5])
        raise CheckpointError(
            f"{folder} lacks {names}, and has {found[max(found)].name}: each holds a part of every"
            " matrix.\n"
            "  Copy the missing files there.",
            key=str(folder / part_name(missing[0])),
            value=names,
        )
    return OfficialFiles(folder, folder.resolve().name, tuple(found[r] for r in sorted(found)))


def _parts(folder: Path) -> dict[int, Path]:
    """Parts in a folder, by rank."""
    if not is_dir(folder):
        return {}
    matches = [(path, _PART.fullmatch(path.name)) for path in folder.iterdir()]
    return {int(match[1]): path for path, match in matches if match and is_file(path)}
