"""Host memory that this process may still use: of the machine, and of its control groups.

A batch system or container limits its processes through control groups. Linux kills a process that
exceeds the limit without a word, so it is compared before a large reservation.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Files:
    """Names in one version of control groups."""

    limit: str
    used: str
    cache: str
    """Entry of memory.stat: cached files, which are given back when memory is needed."""


_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
_VERSION_2 = _Files("memory.max", "memory.current", "file")


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """Return the bytes that can still be allocated; infinite where the system does not say.

    Args:
        proc: Folder in which Linux reports on processes.
        cgroups: Root of the control groups.
    """
    kilobytes = _entry(proc / "meminfo", "MemAvailable:")
    available = math.inf if kilobytes is None else 1024.0 * kilobytes
    for line in _read(proc / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            groups = _left(cgroups, path, _VERSION_2)
        elif "memory" in controllers.split(","):
            groups = _left(cgroups / "memory", path, _VERSION_1)
        else:
            continue
        available = min(available, *groups, math.inf)
    return available


def _left(root: Path, path: str, files: _Files) -> Iterator[float]:
    """Yield what is left in a group and in those above it."""
    folder = root / path.strip("/")
    for group in (folder, *folder.parents):
        limit, used = _read(group / files.limit).strip(), _read(group / files.used).strip()
        if limit.isdigit() and used.isdigit():
            cache = _entry(group / "memory.stat", files.cache) or 0
            yield max(int(limit) - int(used) + cache, 0)
        if group == root:
            return


def _entry(file: Path, name: str) -> int | None:
    """Return the number behind a name at the start of a line."""
    for line in _read(file).splitlines():
        words = line.split()
        if words[:1] == [name]:
            return int(words[1])
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
