"""Retention: which checkpoints of a run stay, counted in verified ones.

A checkpoint counts once its hashes have been compared, by the save that wrote it, by the load that
resumed from it, or here before an older one is removed. So no removal relies on a checkpoint that
nobody could load.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glm_dist.checkpoint.folders import (
    BAD,
    FEWEST_KEPT,
    create_staging,
    list_steps,
    remove,
    set_aside,
    step_of,
)
from glm_dist.checkpoint.load import read_checkpoint
from glm_dist.checkpoint.manifest import (
    DamagedCheckpointError,
    Json,
    UnreadableCheckpointError,
)
from glm_dist.errors import CheckpointError
from glm_dist.observe.fence import Fence
from glm_dist.parallel.errors import Ranks

log = logging.getLogger(__name__)


ATTEMPT = "attempt"
"""Name in a manifest's ``extra``: number of the start of the run that saved it."""


@dataclass(frozen=True)
class Upkeep:
    """Rules of one job for the checkpoints of its run, and what it has found out about them."""

    keep_every: int = 0
    """Checkpoints at multiples of this step stay as well; 0: none."""
    verified: set[str] = field(default_factory=set)
    """Names of folders whose hashes this job has compared; the same on every rank."""
    unusable: set[str] = field(default_factory=set)
    """Names of folders that can be neither verified nor set aside: not counted, not removed."""
    best: set[int] = field(default_factory=set)
    """Steps of the best checkpoint, and of a better one until it is complete; they stay."""
    uploading: set[str] = field(default_factory=set)
    """Names of folders that are being uploaded and so are not removed yet; on rank 0."""
    fence: Fence | None = None
    """Claim on the run folder, on rank 0; None elsewhere, and where nobody else can write."""

    def check(self) -> None:
        """Check the claim on the run folder; does nothing without one.

        Raises:
            CheckpointError: The folder is gone or belongs to another job.
        """
        if self.fence is not None:
            self.fence.check()

    def facts(self) -> dict[str, Json]:
        """Return what a checkpoint records about the job that saved it; on rank 0."""
        return {} if self.fence is None else {ATTEMPT: self.fence.attempt}

    def begin(self, directory: Path, step: int) -> Path:
        """Create the folder for the next save, after a check; on rank 0.

        Without locks another job may be alive, and only what this attempt has left is removed.
        """
        self.check()
        fence = self.fence
        if fence is None:
            return create_staging(directory, step)
        return create_staging(
            directory,
            step,
            attempt=fence.attempt,
            clears=lambda found: fence.excludes_others or found == fence.attempt,
            parents=False,
        )

    def went_back_to(self, path: Path) -> None:
        """Note that the run has gone back to a verified checkpoint: the later ones are damaged.

        Args:
            path: Its folder.
        """
        step = step_of(path) or 0
        self.verified.intersection_update(
            [name for name in self.verified if (step_of(Path(name)) or 0) < step]
        )
        self.verified.add(path.name)

    def stays(self, step: int) -> bool:
        """Return True if a checkpoint stays whatever its age."""
        return step in self.best or (self.keep_every > 0 and step % self.keep_every == 0)


def retire(
    directory: Path, ranks: Ranks, *, step: int, keep_last: int, upkeep: Upkeep
) -> list[Path]:
    """Remove old checkpoints; collective over all ranks.

    The newest ``max(keep_last, 2)`` verified ones up to ``step`` stay, those that are not verified
    yet are hashed first, split over ranks, and damaged ones are set aside by name. Later steps (of
    a run that was rewound) are neither counted nor removed.

    Args:
        directory: The run's checkpoints folder.
        ranks: Participating processes.
        step: Step that was just saved.
        keep_last: Newest checkpoints to keep.
        upkeep: Rules; what is verified here is noted there.

    Returns:
        The checkpoints removed.
    """
    keep = max(keep_last, FEWEST_KEPT)
    task, key = "list the checkpoints", str(directory)
    while (
        path := ranks.on_first(task, key, lambda: _next(directory, step, keep, upkeep))
    ) is not None:
        _verify(path, ranks, upkeep)
    removed = ranks.on_first(
        "remove older checkpoints", key, lambda: _remove_older(directory, step, keep, upkeep)
    )
    upkeep.verified.difference_update(path.name for path in removed)
    return removed


def _next(directory: Path, step: int, keep: int, upkeep: Upkeep) -> Path | None:
    """Return the checkpoint to verify before one can be removed; None if no more is needed."""
    steps = _up_to(directory, step)
    counted = 0
    for position, (_, path) in enumerate(steps):
        older = steps[position + 1 :]
        has_victim = any(not upkeep.stays(number) for number, _ in older)
        if len(steps) <= keep or counted >= keep or not has_victim:
            return None
        if path.name in upkeep.verified:
            counted += 1
        elif path.name not in upkeep.unusable:
            return path
    return None


def _verify(path: Path, ranks: Ranks, upkeep: Upkeep) -> None:
    damage = None
    try:
        read_checkpoint(path, group=ranks.group)
        upkeep.verified.add(path.name)
        return
    except CheckpointError as error:
        may_be_intact = isinstance(error, UnreadableCheckpointError)
        if isinstance(error, DamagedCheckpointError) and not may_be_intact:
            damage = str(error.value)
        elif ranks.rank == 0:
            log.warning("could not verify checkpoint path=%s reason=%s", path, error)
    aside = None
    if damage is not None:
        aside = ranks.on_first(
            "set a checkpoint aside", str(path), lambda: set_aside(path, BAD, reason=str(damage))
        )
    if aside is None:
        upkeep.unusable.add(path.name)


def _remove_older(directory: Path, step: int, keep: int, upkeep: Upkeep) -> list[Path]:
    upkeep.check()
    steps = _up_to(directory, step)
    verified = [number for number, path in steps if path.name in upkeep.verified]
    if len(verified) < keep:
        return []
    victims = [
        path
        for number, path in steps
        if number < verified[keep - 1]
        and not upkeep.stays(number)
        and path.name not in upkeep.unusable
        and path.name not in upkeep.uploading
    ]
    for path in victims:
        remove(path)
    return victims


def _up_to(directory: Path, step: int) -> Sequence[tuple[int, Path]]:
    """List the checkpoints up to a step, newest first, without any that is being replaced."""
    return [
        (number, path)
        for number, path in list_steps(directory)
        if number <= step and not path.name.startswith(".")
    ]
