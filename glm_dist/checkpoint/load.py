"""Choice of the checkpoint to resume from, and loading of its tensors in any layout.

A checkpoint is used only if every file exists and (on request) is unchanged. Names and shapes are
compared before the first byte is read, so no tensor keeps its old values by accident.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from glm_dist.checkpoint.best import StepChoice, read_best
from glm_dist.checkpoint.finite import check_after_load
from glm_dist.checkpoint.folders import BAD, damaged_names, list_steps, set_aside, step_name
from glm_dist.checkpoint.fragments import as_fragment
from glm_dist.checkpoint.manifest import WEIGHTS as WEIGHTS
from glm_dist.checkpoint.manifest import (
    DamagedCheckpointError,
    Manifest,
    UnreadableCheckpointError,
    all_damaged,
    damage_error,
    find_problems,
    read_manifest,
)
from glm_dist.checkpoint.reader import read_tensors
from glm_dist.checkpoint.rewind import list_candidates
from glm_dist.checkpoint.version_1 import with_boxes
from glm_dist.errors import CheckpointError
from glm_dist.files import exists
from glm_dist.parallel.errors import Ranks

log = logging.getLogger(__name__)

_MAX_LISTED = 10


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint."""

    path: Path
    manifest: Manifest
    """With the boxes of its tensors, whatever its format version."""


def find_checkpoint(
    directory: Path,
    *,
    step: int | None = None,
    before: int | None = None,
    verify: bool = True,
    sets_aside: bool = False,
    group: dist.ProcessGroup | None = None,
) -> CheckpointInfo | None:
    """Find the newest complete checkpoint of a run; collective over all ranks.

    Damaged ones are skipped with a warning that names the file and the reason.

    Args:
        directory: The run's checkpoints folder; need not exist.
        step: Step that the run goes back to (``rewind.py``); None: use the newest.
        before: Only checkpoints before this step; None: all.
        verify: Compare every file's SHA-256, split over ranks; otherwise only sizes.
        sets_aside: Rename the damaged ones that are newer than the one found. If none is found,
            nothing is renamed; neither is one that the system could not read, which may be intact.
        group: All ranks, over gloo; None: the default group, or a single process.

    Returns:
        None if there is no complete checkpoint.

    Raises:
        CheckpointError: The newest one has another format version, the folder cannot be read, or
            there is no checkpoint of the step.
    """
    ranks = Ranks(group)
    steps = ranks.on_first(
        "list the checkpoints", str(directory), lambda: list_candidates(directory, step)
    )
    damaged: list[DamagedCheckpointError] = []
    info = None
    for number, path in steps:
        if before is not None and number >= before:
            continue
        try:
            info = _read_checked(path, ranks, read_content=verify)
            break
        except DamagedCheckpointError as error:
            damaged.append(error)
    renames = sets_aside and info is not None
    ranks.on_first(
        "set checkpoints aside", str(directory), lambda: _leave(damaged, renames=renames)
    )
    return info


def _leave(damaged: Sequence[DamagedCheckpointError], *, renames: bool) -> None:
    for error in damaged:
        if renames and not isinstance(error, UnreadableCheckpointError):
            set_aside(Path(error.key), BAD, reason=str(error.value))
        else:
            log.warning("skipped damaged checkpoint path=%s reason=%s", error.key, error.value)


def read_checkpoint(
    path: Path, *, verify: bool = True, group: dist.ProcessGroup | None = None
) -> CheckpointInfo:
    """Read and verify one checkpoint; collective over all ranks.

    Args:
        path: Its folder.
        verify: See ``find_checkpoint``.
        group: See ``find_checkpoint``.

    Raises:
        CheckpointError: It is missing, damaged or has another format version.
    """
    return _read_checked(path, Ranks(group), read_content=verify)


def choose_checkpoint(directory: Path, choice: StepChoice) -> CheckpointInfo:
    """Find the checkpoint that a user of a run asks for; collective over all ranks.

    Args:
        directory: The run's checkpoints folder.
        choice: Which one; the newest complete one if None.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    step = _best_step(directory) if isinstance(choice, str) else choice
    if step is not None:
        path = directory / step_name(step)
        if not exists(path):
            steps = ", ".join(str(number) for number, _ in list_steps(directory)) or "none"
            raise CheckpointError(
                f"There is no checkpoint of step {step} in {directory}; there are: {steps}.\n"
                "Name one of these, or leave --step out for the newest.",
                key="--step",
                value=step,
                fix="leave --step out",
            )
        return read_checkpoint(path)
    info = find_checkpoint(directory)
    if info is None and (damaged := damaged_names(directory)):
        raise all_damaged(directory, damaged, fix="name another run")
    if info is None:
        raise CheckpointError(
            f"{directory} holds no complete checkpoint.\n"
            "Train the run with checkpoint.interval above 0, or name another run.",
            key=str(directory),
            fix="checkpoint.interval=1000",
        )
    return info


def _best_step(directory: Path) -> int:
    best = Ranks(None).on_first("read", str(directory), lambda: read_best(directory))
    return best.step


def load_tensors(
    info: CheckpointInfo,
    tensors: Mapping[str, torch.Tensor],
    *,
    prefixes: Sequence[str] | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Fill tensors in place from a checkpoint of any layout; collective over all ranks.

    Args:
        info: Checkpoint to read.
        tensors: Fragments (or whole tensors) by global name. Ranks may request different names;
            values are converted to the tensors' dtypes.
        prefixes: Read only names that begin with one of these (``("model.",)`` for weights without
            optimizer state). Unset: every tensor of the checkpoint must be requested by some rank.
        group: All ranks, over gloo; None: the default group, or a single process.

    Raises:
        CheckpointError: On every rank: names are missing from the checkpoint or left over in it,
            or shapes differ (all are listed; nothing was read then), reading failed, or what was
            read is not finite.
    """
    ranks = Ranks(group)
    started = time.monotonic()
    fragments = {name: as_fragment(tensor) for name, tensor in tensors.items()}
    wanted: dict[str, set[tuple[int, ...]]] = {}
    for each in ranks.gather({name: tuple(f.shape) for name, f in fragments.items()}):
        for name, shape in each.items():
            wanted.setdefault(name, set()).add(shape)
    _check_names(info, wanted, prefixes)
    with ranks.raise_on_all_ranks("read tensors", str(info.path)):
        read_tensors(info.path, info.manifest, fragments, ranks)
    check_after_load(info.path, fragments, ranks)
    log.info(
        "loaded step=%d from=%s tensors=%d seconds=%.1f",
        info.manifest.step,
        info.path,
        len(wanted),
        time.monotonic() - started,
    )


def _read_checked(path: Path, ranks: Ranks, *, read_content: bool) -> CheckpointInfo:
    manifest = ranks.on_first("read the manifest", str(path), lambda: read_manifest(path))
    mine = dict(sorted(manifest.files.items())[ranks.rank :: ranks.size])
    problems = ranks.gather(find_problems(path, mine, read_content=read_content))
    if any(problems):
        raise damage_error(path, sorted(problem for each in problems for problem in each))
    if manifest.format_version == 1:
        manifest = ranks.on_first("read the boxes", str(path), lambda: with_boxes(path, manifest))
    return CheckpointInfo(path=path, manifest=manifest)


def _check_names(
    info: CheckpointInfo,
    wanted: Mapping[str, set[tuple[int, ...]]],
    prefixes: Sequence[str] | None,
) -> None:
    saved = info.manifest.tensors
    expected = saved if prefixes is None else [n for n in saved if n.startswith(tuple(prefixes))]
    problems = []
    if missing := sorted(set(wanted) - set(saved)):
        problems.append(f"it has no {_listed(missing)}")
    if unexpected := sorted(set(expected) - set(wanted)):
        problems.append(f"the model has no {_listed(unexpected)}")
    different = [
        f"{name} is of shape {saved[name].shape}, not {shape}"
        for name in sorted(set(wanted) & set(saved))
        for shape in sorted(wanted[name] - {saved[name].shape})
    ]
    if different:
        problems.append(_listed(different))
    if problems:
        raise CheckpointError(
            f"{info.path} does not fit the model: {'; '.join(problems)}.\n"
            "  Use the configuration of the run that saved it (config.yaml in its run folder).",
            key=str(info.path),
            value="; ".join(problems),
            fix="",
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
