"""Save of a checkpoint: write to a staging folder, sync, verify, rename, remove older ones.

A checkpoint gets its final name only after all bytes are on disk and were verified, so a crash or a
full disk loses only the save in progress.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from glm_dist.checkpoint.finite import check_before_save
from glm_dist.checkpoint.folders import (
    MANIFEST_NAME,
    publish,
    step_name,
)
from glm_dist.checkpoint.fragments import Fragment, as_fragment
from glm_dist.checkpoint.manifest import (
    FileRecord,
    Json,
    Manifest,
    damage_error,
    find_problems,
)
from glm_dist.checkpoint.retention import Upkeep, retire
from glm_dist.checkpoint.storage import write_file, write_tensors
from glm_dist.errors import CheckpointError
from glm_dist.files import fsync_folder
from glm_dist.parallel.errors import Ranks, SaveProgress

log = logging.getLogger(__name__)


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    extra: Mapping[str, Json],
    layout: Mapping[str, int],
    keep_last: int,
    group: dist.ProcessGroup | None = None,
    progress: SaveProgress | None = None,
    upkeep: Upkeep | None = None,
) -> Path:
    """Save a step; collective over all ranks.

    Args:
        directory: The run's checkpoints folder, on a file system that every rank sees.
        step: Optimizer steps done, skipped fp16 updates included.
        tensors: Fragments (or whole tensors, the same on every rank that has them) by global name.
            Ranks may hold different names; together they hold every element of each.
        extra: State of the run that is the same on every rank; rank 0's is kept.
        layout: Sizes of the process axes.
        keep_last: Newest verified checkpoints to keep; two are kept in any case.
        group: All ranks, over gloo; None: the default group, or a single process.
        progress: Receives each task as it begins.
        upkeep: Rules of this job, the same object for all its saves; None: nothing is known yet.

    Returns:
        The finished folder, ``directory/step_XXXXXXX``.

    Raises:
        CheckpointError: On every rank, if any rank failed. Earlier checkpoints are intact.
        TrainingError: On every rank, before anything is written: a value is not finite.
    """
    ranks = Ranks(group, progress)
    started = time.monotonic()
    final = directory / step_name(step)
    fragments = {name: as_fragment(tensor) for name, tensor in tensors.items()}
    upkeep = Upkeep() if upkeep is None else upkeep
    check_before_save(fragments, ranks, step=step, directory=directory)
    staging = ranks.on_first(
        f"create a folder in {directory}", str(final), lambda: upkeep.begin(directory, step)
    )
    with _discarded_on_failure(staging, ranks, upkeep):
        manifest = _write_all(
            staging,
            ranks,
            Manifest(step, dict(layout), {**extra, **upkeep.facts()}, tensors={}, files={}),
            fragments=fragments,
        )
        ranks.on_first(
            "rename the finished folder", str(final), lambda: _publish(staging, final, upkeep)
        )
    gib = sum(record.num_bytes for record in manifest.files.values()) / 2**30
    seconds = time.monotonic() - started  # the caller's event has the user's figure
    log.debug("saved step=%d to=%s gib=%.3f seconds=%.1f", step, final, gib, seconds)
    upkeep.verified.add(final.name)
    _retire_older(directory, ranks, step=step, keep_last=keep_last, upkeep=upkeep)
    return final


def _retire_older(
    directory: Path, ranks: Ranks, *, step: int, keep_last: int, upkeep: Upkeep
) -> None:
    removed = retire(directory, ranks, step=step, keep_last=keep_last, upkeep=upkeep)
    if removed and ranks.rank == 0:
        log.info("removed checkpoints=%s", ",".join(path.name for path in removed))


def _publish(staging: Path, final: Path, upkeep: Upkeep) -> None:
    upkeep.check()
    publish(staging, final)


def _write_all(
    staging: Path,
    ranks: Ranks,
    manifest: Manifest,
    *,
    fragments: Mapping[str, Fragment],
) -> Manifest:
    """Fill the staging folder; return the manifest with its tensors and files."""
    key = str(staging)
    with ranks.raise_on_all_ranks("find the folder that rank 0 created", key):
        _check_is_shared(staging)
    with ranks.raise_on_all_ranks("write tensors", key):
        files, saved_tensors = write_tensors(staging, fragments, ranks)
    with ranks.raise_on_all_ranks("sync the folder", key):
        fsync_folder(staging)
    with ranks.raise_on_all_ranks("read back what it wrote", key):
        _check_written(staging, files)
    all_files = {name: record for each in ranks.gather(files) for name, record in each.items()}
    manifest = replace(manifest, tensors=saved_tensors, files=all_files)
    ranks.on_first("write the manifest", key, lambda: _write_manifest(staging, manifest))
    return manifest


@contextmanager
def _discarded_on_failure(staging: Path, ranks: Ranks, upkeep: Upkeep) -> Iterator[None]:
    """Delete a failed save, because a full disk may be why it failed.

    Raises:
        CheckpointError: On every rank: the run folder is gone or belongs to another job, which is
            the reason of the failure.
    """
    try:
        yield
    except Exception as error:
        if ranks.rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, CheckpointError):  # raised by every rank
            ranks.on_first("look at the run folder", str(staging.parent), upkeep.check)
        raise


def check_shared(directory: Path) -> None:
    """Raise before training if the folder is not the same one on every host.

    Collective over all ranks.

    Args:
        directory: Folder that exists on rank 0.

    Raises:
        CheckpointError: On every rank.
    """
    ranks = Ranks(None)
    name = ranks.on_first(
        "write into the run folder",
        str(directory),
        lambda: Path(tempfile.mkdtemp(prefix=".shared-", dir=directory)).name,
    )
    try:
        with ranks.raise_on_all_ranks("find what rank 0 wrote", str(directory)):
            _check_is_shared(directory / name)
    finally:
        if ranks.rank == 0:
            shutil.rmtree(directory / name, ignore_errors=True)


def _check_is_shared(staging: Path) -> None:
    if not staging.is_dir():
        raise CheckpointError(
            f"{staging.parent} is not one folder: at least two hosts have their own.\n"
            "  Set paths.runs to a shared file system.",
            key=str(staging.parent),
            value=None,
            fix="paths.runs=<shared folder>",
        )


def _check_written(staging: Path, files: Mapping[str, FileRecord]) -> None:
    problems = find_problems(staging, files, read_content=True)
    if problems:
        raise damage_error(staging, problems)


def _write_manifest(staging: Path, manifest: Manifest) -> None:
    write_file(staging / MANIFEST_NAME, manifest.to_json().encode())
    fsync_folder(staging)
