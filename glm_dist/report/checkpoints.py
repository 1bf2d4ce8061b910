"""The checkpoints that a run folder holds, and whether their files are what was written."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from glm_dist.checkpoint.best import read_best
from glm_dist.checkpoint.folders import BAD, REWOUND, list_set_aside, list_steps
from glm_dist.checkpoint.manifest import Json, Manifest, find_problems, read_manifest
from glm_dist.errors import CheckpointError
from glm_dist.observe.run_folder import CHECKPOINTS

Facts: TypeAlias = dict[str, Json]


def checkpoint_facts(
    run: Path, *, verify: bool, read: Callable[[Path], Manifest] = read_manifest
) -> list[Facts]:
    """Describe every checkpoint of a run, newest first, then those that were set aside.

    Args:
        run: The run folder.
        verify: Hash every file; otherwise their sizes are compared.
        read: Reads a manifest.
    """
    directory = run / CHECKPOINTS
    try:
        best = read_best(directory).step
    except CheckpointError:
        best = None
    found = [_facts(step, path, best, verify, read) for step, path in list_steps(directory)]
    for prefix, verdict in ((BAD, "damaged, set aside"), (REWOUND, "set aside by a rewind")):
        found += [_set_aside(name, prefix, verdict) for name in list_set_aside(directory, prefix)]
    return found


def _facts(
    step: int, path: Path, best: int | None, verify: bool, read: Callable[[Path], Manifest]
) -> Facts:
    facts: Facts = {"step": step, "name": path.name, "is_best": step == best}
    try:
        manifest = read(path)
        problems = find_problems(path, manifest.files, read_content=verify)
    except CheckpointError as error:
        return {**facts, "is_sound": False, "verdict": _reason(error, path)}
    verdict = "hashes as written" if verify else "sizes as written"
    return {
        **facts,
        "bytes": sum(file.num_bytes for file in manifest.files.values()),
        "files": len(manifest.files),
        "layout": dict(manifest.layout),
        "holds": "weights and optimizer" if manifest.has_optimizer else "weights",
        "attempt": manifest.extra.get("attempt"),
        "is_sound": not problems,
        "verdict": "; ".join(problems) or verdict,
    }


def _reason(error: CheckpointError, path: Path) -> str:
    return str(error).partition("\n")[0].removeprefix(f"{path} is ")


def _set_aside(name: str, prefix: str, verdict: str) -> Facts:
    digits = name.removeprefix(f"{prefix}step_").partition("-")[0]
    step = int(digits) if digits.isdecimal() else 0
    return {"step": step, "name": name, "is_best": False, "is_sound": False, "verdict": verdict}
