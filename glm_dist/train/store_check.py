"""Check of ``checkpoint.url`` before the start: it can be used, and what it has; no torch."""

import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from glm_dist.checkpoint.folders import list_steps, step_name
from glm_dist.checkpoint.manifest import (
    DamagedCheckpointError,
    Manifest,
    all_damaged,
    read_manifest,
)
from glm_dist.checkpoint.remote import (
    CONFIG,
    MissingObjectError,
    RemoteStore,
    StoreError,
    open_store,
)
from glm_dist.checkpoint.remote_steps import check_remote, list_newer
from glm_dist.checkpoint.rewind import list_candidates
from glm_dist.config.schema import Resume, RunConfig
from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.files import exists
from glm_dist.observe.run_folder import CHECKPOINTS, CONFIG_FILE
from glm_dist.train.same_run import check_same_config, passed_over


@dataclass(frozen=True)
class RemoteCheckpoint:
    """Checkpoint on a store that the run would fetch and continue from."""

    step: int
    url: str
    manifest: Manifest


def check_store(config: RunConfig) -> RemoteCheckpoint | None:
    """Check that the store can be used, and compare the configuration with the one kept there.

    Args:
        config: Checked configuration.

    Returns:
        The checkpoint that the run would fetch; None if it has a newer one, or there is none.

    Raises:
        ConfigError: The store cannot be used, or the run was trained with another configuration.
        CheckpointError: All its checkpoints are damaged, or ``checkpoint.resume=never`` and there
            is one.
    """
    url = config.checkpoint.url
    if url is None:
        return None
    store = open_store(url, config.run.name)
    try:
        found = _newest(config, store)
        if config.checkpoint.interval > 0:
            store.probe(f"probe-{uuid.uuid4().hex}.json")  # the first upload may be hours away
        if found is not None and not exists(config.run_dir / CONFIG_FILE):
            _check_same_config(config, store, found)
    except StoreError as error:
        raise ConfigError(
            f"checkpoint.url={url} cannot be used. {error}",
            key="checkpoint.url",
            value=url,
            fix="checkpoint.url=<folder that exists and that this user may write>",
        ) from None
    return found


def _newest(config: RunConfig, store: RemoteStore) -> RemoteCheckpoint | None:
    local = _newest_local(config)
    damaged = []
    for step in list_newer(store, local=local, step=config.checkpoint.step):
        url = f"{store.url}/{step_name(step)}"
        if config.checkpoint.resume is Resume.never:
            raise CheckpointError(
                f"checkpoint.resume=never, but checkpoint.url has {url}, which the run would"
                " replace.\n  Set another run.name, or continue with checkpoint.resume=auto.",
                key="checkpoint.resume",
                value="never",
                fix="checkpoint.resume=auto",
            )
        try:
            return RemoteCheckpoint(step, url, check_remote(store, step, read_content=False))
        except DamagedCheckpointError:
            damaged.append(step_name(step))  # the start warns
    if damaged and local is None:
        raise all_damaged(store.url, damaged, fix="set checkpoint.url=null to do without them")
    return None


def _newest_local(config: RunConfig) -> int | None:
    folder = config.run_dir / CHECKPOINTS
    if not list_steps(folder):
        return None
    try:
        candidates = list_candidates(folder, config.checkpoint.step)
    except CheckpointError:  # checkpoint.step is not there
        return None
    for step, path in candidates:
        try:
            read_manifest(path)
        except DamagedCheckpointError:
            continue
        return step
    return None


def _check_same_config(config: RunConfig, store: RemoteStore, found: RemoteCheckpoint) -> None:
    try:
        content = store.read(CONFIG)
    except MissingObjectError:
        return
    with tempfile.TemporaryDirectory(prefix="glm-dist-") as scratch:
        file = Path(scratch) / CONFIG_FILE
        file.write_bytes(content)
        check_same_config(
            config,
            newest=found.url,
            rows_read=found.step * config.batch.global_batch_size,
            skipped=passed_over(found.manifest.extra),
            file=file,
            shown=f"{store.url}/{CONFIG}",
        )
