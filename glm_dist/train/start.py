"""Start of training: at step 0, from the run's own checkpoint, or from another run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from glm_dist.checkpoint.folders import MANIFEST_NAME, damaged_names, step_name
from glm_dist.checkpoint.load import (
    CheckpointInfo,
    find_checkpoint,
    read_checkpoint,
)
from glm_dist.checkpoint.manifest import Json, all_damaged
from glm_dist.checkpoint.retention import ATTEMPT, Upkeep
from glm_dist.checkpoint.rewind import REWOUND_TO, set_later_aside
from glm_dist.config.schema import InitWith, Resume, RunConfig
from glm_dist.data.identity import describe_differences
from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.files import is_dir, is_file
from glm_dist.observe.run_folder import CHECKPOINTS, PROVENANCE_FILE, RunFolder
from glm_dist.parallel.errors import Ranks, needs_human
from glm_dist.train.best import best_step
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.fit import Fit, fit_checkpoint, saved_shapes
from glm_dist.train.preflight import no_origin
from glm_dist.train.same_run import (
    check_has_optimizer,
    check_same_position,
    check_same_rows,
    moved_position,
)
from glm_dist.train.state import load_weights, restore_state
from glm_dist.train.uploads import RunStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Starting point of training in one process."""

    step: int = 0
    """Steps already done."""
    origin: CheckpointInfo | None = None
    """Checkpoint of another run that gave the weights."""
    fit: Fit | None = None
    """Weights that it gave, and those that it did not; None if it gave the optimizer as well."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Further state in the checkpoint that training goes on from; empty at step 0."""
    own: CheckpointInfo | None = None
    """Verified checkpoint of this run that it continues from."""

    @property
    def own_path(self) -> Path | None:
        """Folder of that checkpoint."""
        return None if self.own is None else self.own.path

    def described(self) -> dict[str, str | float]:
        """Return the details of the event that reports a start from another run."""
        details: dict[str, str | float] = (
            {} if self.origin is None else {"from": str(self.origin.path)}
        )
        if self.fit is not None:
            details["loaded"] = len(self.fit.loaded)
            for kind in ("grown", "new", "unused"):
                details[kind] = ", ".join(getattr(self.fit, kind))
        return details

    def upkeep(self, config: RunConfig, folder: RunFolder | None) -> Upkeep:
        """Begin this job's account of the run's checkpoints.

        Args:
            config: Checked configuration.
            folder: The open run folder on rank 0; None elsewhere.
        """
        saved_by = 0 if self.own is None else self.own.manifest.extra.get(ATTEMPT, 0)
        if folder is not None and isinstance(saved_by, int) and saved_by >= folder.attempt:
            log.warning(
                "checkpoint of a later attempt: saved_by=%d, but %s counts this one as attempt=%d",
                *(saved_by, PROVENANCE_FILE, folder.attempt),
            )
        return Upkeep(
            keep_every=config.checkpoint.keep_every,
            verified=set() if self.own is None else {self.own.path.name},
            fence=None if folder is None else folder.fence,
        )


def facts_of_start(config: RunConfig) -> dict[str, Json]:
    """Return the facts about the start of a job that its checkpoints record."""
    step = config.checkpoint.step
    return {} if step is None else {REWOUND_TO: step}


def starting_point(
    config: RunConfig,
    engine: TrainingEngine,
    identity: Mapping[str, Json],
    *,
    run_store: RunStore | None = None,
) -> Start:
    """Resume the run, or start it with its initial weights. Collective over all ranks.

    Args:
        config: Checked configuration.
        engine: Freshly built; its weights and moments may be overwritten.
        identity: The data's fingerprint, as checkpoints record it.
        run_store: The run's folder on a store, which may have a newer checkpoint; None: it has no
            store.

    Raises:
        CheckpointError: All checkpoints are damaged, the required one is missing, it was trained on
            other data, or ``run.init_from`` does not fit.
        ConfigError: The checkpoint of ``run.init_from`` has reached ``run.steps``.
    """
    own = None
    if config.checkpoint.resume is not Resume.never:
        with needs_human(engine.groups.rank):  # all are damaged: a restart would find the same
            own = _own_checkpoint(config, run_store)
    if own is not None:
        check_has_optimizer(own.path, own.manifest)
        check_same_position(config, own.path, own.manifest)
        check_same_rows(config, own.path, extra=own.manifest.extra, current=identity["data"])
        start = Start(restore_state(engine, own), extra=own.manifest.extra, own=own)
        _leave_later_ones(config, own, run_store)
        _fetch_best(config, own, run_store)
        return start
    if config.run.init_from is None:
        return Start()
    if config.run.init_with is InitWith.architecture:
        log.info("weights drawn; run.init_from=%s gave the architecture only", config.run.init_from)
        return Start()
    origin = find_origin(Path(config.run.init_from))
    if config.run.init_with is InitWith.weights:
        return Start(origin=origin, fit=_load_origin(engine, origin, config))
    check_has_optimizer(origin.path, origin.manifest)
    if origin.manifest.step >= config.run.steps:
        raise ConfigError(
            f"run.steps={config.run.steps} is already reached: {origin.path} is at step"
            f" {origin.manifest.step}.\nSet a larger run.steps, or load only the weights with"
            " run.init_with=weights.",
            key="run.steps",
            value=config.run.steps,
            fix="run.init_with=weights",
        )
    saved, current = origin.manifest.extra.get("data"), identity["data"]
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for difference in describe_differences(saved, current):
            log.info("run.init_from: other data from here on: %s", difference)
    if (moved := moved_position(config, origin.manifest)) and Ranks(None).rank == 0:
        log.warning("run.init_from: %s", moved)
    return Start(restore_state(engine, origin), origin, extra=origin.manifest.extra)


def find_origin(path: Path) -> CheckpointInfo:
    """Find the checkpoint that ``run.init_from`` names. Collective over all ranks.

    Args:
        path: A run folder, for its newest complete checkpoint, or a checkpoint's folder.

    Raises:
        CheckpointError: It holds no usable checkpoint.
    """
    if is_file(path / MANIFEST_NAME):
        return read_checkpoint(path)
    info = find_checkpoint(path / CHECKPOINTS)
    if info is None:
        raise no_origin(path)
    return info


def _leave_later_ones(config: RunConfig, own: CheckpointInfo, run_store: RunStore | None) -> None:
    """Set aside the checkpoints after the one that ``checkpoint.step`` names.

    Raises:
        CheckpointError: On every rank: one cannot be renamed, or the store does not answer.
    """
    step, folder = config.checkpoint.step, own.path.parent
    if step is None:
        return
    if own.manifest.step > step:
        log.info("the run went back to step=%d before; it goes on from %s", step, own.path)
        return
    if run_store is not None:  # first: a local one that is newer hides what is left there
        Ranks(None).on_first(
            "set later uploads aside",
            str(config.checkpoint.url),
            lambda: run_store.set_later_aside(step),
        )
    Ranks(None).on_first(
        "set later checkpoints aside", str(folder), lambda: set_later_aside(folder, step)
    )


def _fetch_best(config: RunConfig, own: CheckpointInfo, run_store: RunStore | None) -> None:
    """Fetch the best checkpoint as well, where the run goes on without its local ones. Collective.

    Raises:
        CheckpointError: On every rank: the store or the disk failed, or it is damaged there.
    """
    step = best_step(own.manifest.extra)
    if not config.checkpoint.keep_best or run_store is None or step is None:
        return
    folder = own.path.parent
    path = folder / step_name(step)
    if not Ranks(None).on_first("look for the best checkpoint", str(path), lambda: is_dir(path)):
        run_store.fetch(folder, local=None, step=step)


def _load_origin(engine: TrainingEngine, origin: CheckpointInfo, config: RunConfig) -> Fit:
    """Load the weights that both models have, and log the others.

    Position tables may be longer than the saved ones; then their first rows are loaded.

    Raises:
        CheckpointError: A weight is new or unused that no task adds, or has another shape.
    """
    fit = fit_checkpoint(config, origin.manifest, origin=origin.path)
    saved = saved_shapes(origin.manifest)
    load_weights(engine, origin, {name: saved[name] for name in fit.loaded})
    if engine.groups.rank == 0:
        log.info(
            "weights from=%s step=%d loaded=%d grown=%d new=%d unused=%d",
            *(origin.path, origin.manifest.step, len(fit.loaded), len(fit.grown)),
            *(len(fit.new), len(fit.unused)),
        )
        for title, names in (
            ("longer than in", fit.grown),
            ("not in", fit.new),
            ("only in", fit.unused),
        ):
            if names:
                log.warning("weights %s the checkpoint: %s", title, ", ".join(names))
    return fit


def _own_checkpoint(config: RunConfig, run_store: RunStore | None) -> CheckpointInfo | None:
    """Find the newest complete checkpoint of the run, here or on its store; None: the run is new.

    Raises:
        CheckpointError: There are checkpoints and none is complete, or the required one is missing.
    """
    folder = config.run_dir / CHECKPOINTS
    step = config.checkpoint.step
    missing: CheckpointError | None = None
    try:
        info = find_checkpoint(folder, step=step, sets_aside=True)
    except CheckpointError as error:  # on every rank
        if step is None or run_store is None:
            raise
        info, missing = None, error
    if run_store is not None:
        local = None if info is None else info.manifest.step
        fetched = run_store.fetch(folder, local=local, step=step)
        if fetched is not None:
            return read_checkpoint(fetched, verify=False)  # compared when it was fetched
    if info is not None:
        return info
    if missing is not None:
        raise missing
    if step is not None:  # damaged; the error says how
        return read_checkpoint(folder / step_name(step))
    Ranks(None).on_first("look for checkpoints", str(folder), lambda: _check_is_new(folder))
    if config.checkpoint.resume is Resume.must:
        raise CheckpointError(
            f"checkpoint.resume=must, but {folder} has no complete checkpoint.\n"
            "Restore its files, or start over with checkpoint.resume=auto.",
            key="checkpoint.resume",
            value="must",
            fix="checkpoint.resume=auto",
        )
    return None


def _check_is_new(folder: Path) -> None:
    """Refuse to start at step 0 if there are damaged checkpoints: that would hide the loss.

    Raises:
        CheckpointError: There are checkpoint folders.
    """
    if damaged := damaged_names(folder):
        raise all_damaged(folder, damaged, fix="start a new run with run.name=<new>")
