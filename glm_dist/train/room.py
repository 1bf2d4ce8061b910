"""Check before the start that the checkpoints a run keeps fit on its file system."""

import shutil
from pathlib import Path

from glm_dist.checkpoint.folders import FEWEST_KEPT, list_steps
from glm_dist.config.schema import RunConfig
from glm_dist.errors import CheckpointError
from glm_dist.plan.saves import bytes_of_checkpoint


def check_room(config: RunConfig, folder: Path, *, free: int | None = None) -> None:
    """Refuse a run whose checkpoints would fill the disk in the middle of it.

    What the folder already holds is part of them.

    Args:
        config: Checked configuration.
        folder: The run's checkpoints folder; need not exist.
        free: Bytes free there; None: as the file system says.

    Raises:
        CheckpointError: They do not fit.
    """
    if config.checkpoint.interval == 0:
        return
    place = folder
    while not place.exists():
        place = place.parent
    one = bytes_of_checkpoint(config)
    uploads = config.checkpoint.url is not None
    count = checkpoints_on_disk(config)
    held = sum(_num_bytes(path) for _, path in list_steps(folder))
    needed = max(count * one - held, 0)
    available = shutil.disk_usage(place).free if free is None else free
    if needed <= available:
        return
    raise CheckpointError(
        f"{count} checkpoints of {_gib(one)} do not fit on the file system of {place}: they need"
        f" {needed} bytes ({_gib(needed)}) more, and {available} ({_gib(available)}) are free."
        f" A save needs room for one more than the {_kept(config)} that are kept"
        f"{', and an upload for another' if uploads else ''}.\n"
        "  Free space there, set paths.runs to another file system, or keep fewer with a lower"
        " checkpoint.keep_last.",
        key="checkpoint.keep_last",
        value=config.checkpoint.keep_last,
        fix="paths.runs=<folder with room>",
    )


def checkpoints_on_disk(config: RunConfig) -> int:
    """Count the checkpoints that a disk must hold at once.

    A save needs room for one more than retention keeps, and one that is being uploaded stays until
    that has ended. Those kept by ``checkpoint.keep_every`` come on top and are not counted.

    Args:
        config: Checked configuration, with an interval.
    """
    kept = _kept(config)
    uploads = config.checkpoint.url is not None
    saves = -(-config.run.steps // config.checkpoint.interval) + config.checkpoint.keep_best
    return min(kept + 1 + uploads, saves)


def _kept(config: RunConfig) -> int:
    return max(config.checkpoint.keep_last, FEWEST_KEPT) + config.checkpoint.keep_best


def _num_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.iterdir())


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
