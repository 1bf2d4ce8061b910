"""Checkpoints on a store as a run sees them: checked, and newer than its local ones; no torch.

Damaged and incomplete ones are named in a warning by the object.
"""

import logging
import tempfile
from pathlib import Path

from glm_dist.checkpoint.folders import MANIFEST_NAME, step_name
from glm_dist.checkpoint.manifest import (
    DamagedCheckpointError,
    Manifest,
    damage_error,
    read_manifest,
)
from glm_dist.checkpoint.remote import MissingObjectError, RemoteStore
from glm_dist.checkpoint.rewind import REWOUND_TO

log = logging.getLogger(__name__)


def read_remote_manifest(store: RemoteStore, step: int) -> Manifest:
    """Read and check the manifest of a checkpoint on a store.

    Raises:
        DamagedCheckpointError: As ``read_manifest``.
        StoreError: The store does not answer.
    """
    url = f"{store.url}/{step_name(step)}"
    with tempfile.TemporaryDirectory(prefix="glm-dist-") as scratch:
        folder = Path(scratch) / step_name(step)
        folder.mkdir()
        try:
            (folder / MANIFEST_NAME).write_bytes(store.read(f"{folder.name}/{MANIFEST_NAME}"))
            return read_manifest(folder)
        except MissingObjectError:
            raise damage_error(url, [f"no {MANIFEST_NAME}"]) from None
        except DamagedCheckpointError as error:
            raise damage_error(url, [str(error.value)]) from None


def check_remote(store: RemoteStore, step: int, *, read_content: bool = True) -> Manifest:
    """Compare the objects of a checkpoint with its manifest.

    Args:
        store: The run's folder there.
        step: A complete one.
        read_content: Hash the objects; otherwise only sizes are compared.

    Raises:
        DamagedCheckpointError: An object is missing or was changed.
        StoreError: The store does not answer.
    """
    manifest = read_remote_manifest(store, step)
    problems = []
    for file, record in sorted(manifest.files.items()):
        name = f"{step_name(step)}/{file}"
        try:
            num_bytes = store.size(name)
            if num_bytes != record.num_bytes:
                problems.append(f"{file} has {num_bytes} of {record.num_bytes} bytes")
            elif read_content and store.sha256(name) != record.sha256:
                problems.append(f"{file} was changed: its SHA-256 is not the one in the manifest")
        except MissingObjectError:
            problems.append(f"{file} is missing")
    if problems:
        raise damage_error(f"{store.url}/{step_name(step)}", problems)
    return manifest


def list_newer(store: RemoteStore, *, local: int | None, step: int | None) -> list[int]:
    """List the complete checkpoints on a store that a run would take instead of its local one.

    Args:
        store: The run's folder there.
        local: Step of the local checkpoint that the run would continue from; None: there is none.
        step: ``checkpoint.step``. Then the checkpoints that were saved after the run went back to
            it, or, if there is no local one, itself.

    Returns:
        Steps, newest first.

    Raises:
        StoreError: The store does not answer.
    """
    complete, incomplete = store.steps()
    for number in incomplete:
        if number > (local or 0) and step is None:
            log.warning(
                "skipped incomplete checkpoint url=%s/%s reason=no %s",
                *(store.url, step_name(number), MANIFEST_NAME),
            )
    newer = [number for number in complete if local is None or number > local]
    if step is None:
        return newer
    later = [number for number in newer if number > step and _went_back(store, number, step)]
    return later + [number for number in newer if number == step]


def _went_back(store: RemoteStore, number: int, step: int) -> bool:
    try:
        return read_remote_manifest(store, number).extra.get(REWOUND_TO) == step
    except DamagedCheckpointError:
        return False
