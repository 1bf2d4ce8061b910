"""File checks before any rank loads torch: data, tokenizer, run folder.

The checks read only headers and a few blocks; their time does not depend on the amount of data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from glm_dist.checkpoint.folders import MANIFEST_NAME, damaged_names, list_steps, step_name
from glm_dist.checkpoint.manifest import DamagedCheckpointError, all_damaged, read_manifest
from glm_dist.checkpoint.rewind import list_candidates
from glm_dist.config.observe_checks import check_records
from glm_dist.config.schema import InitWith, Resume, RunConfig
from glm_dist.data.corpus.borders import sampled_warnings
from glm_dist.data.corpus.manifest import read_manifest as read_corpus_manifest
from glm_dist.data.corpus.spot_check import spot_check
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.data.tokenizer.stored import TOKENIZER_FOLDER
from glm_dist.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from glm_dist.errors import CheckpointError, DataError
from glm_dist.files import ensure_writable, is_dir, is_file
from glm_dist.observe.run_folder import CHECKPOINTS, CONFIG_FILE
from glm_dist.train.fit import fit_architecture, fit_checkpoint
from glm_dist.train.room import check_room
from glm_dist.train.same_run import (
    check_has_optimizer,
    check_same_config,
    check_same_position,
    check_same_rows,
    passed_over,
)
from glm_dist.train.store_check import RemoteCheckpoint, check_store

MUCH_PADDING = 0.02
"""Share of padding in the rows of a corpus, 0 to 1, that is worth a warning."""


@dataclass(frozen=True)
class CorpusFacts:
    """Size of one prepared corpus."""

    name: str
    documents: int
    """Training documents."""
    tokens: int
    """Training tokens."""
    epochs: float
    """Passes over the training tokens in all steps of the run."""


@dataclass(frozen=True)
class DataFacts:
    """Facts about a run's training data."""

    identity: Mapping[str, object]
    """Fingerprint of the run's workload."""
    corpora: tuple[CorpusFacts, ...] = ()
    """Empty for a task."""
    warnings: tuple[str, ...] = ()
    """Likely mistakes, in words."""


ReadData: TypeAlias = Callable[[RunConfig, Tokenizer], DataFacts]
"""Reads the facts of a checked configuration with its tokenizer; raises if the data is unusable."""


@dataclass(frozen=True)
class Preflight:
    """Facts about the job read from its files."""

    corpora: tuple[CorpusFacts, ...]
    newest_step: int | None
    """Step of the checkpoint that the run would resume from; None for a new run."""
    fetched_from: str | None = None
    """URL of that checkpoint, if the run has to fetch it from ``checkpoint.url``."""
    warnings: tuple[str, ...] = ()
    """Likely mistakes, in words."""


def read_corpora(config: RunConfig, tokenizer: Tokenizer) -> DataFacts:
    """Open the corpora of pretraining; see ``ReadData``."""
    source = open_row_source(config, tokenizer)
    epochs = source.epochs_before(config.run.steps * config.batch.global_batch_size)
    return DataFacts(
        source.fingerprint(),
        corpora=tuple(
            CorpusFacts(
                each.corpus,
                documents=each.documents,
                tokens=each.tokens,
                epochs=epochs[each.corpus],
            )
            for each in source.blend()
        ),
        warnings=tuple(_warnings(config, source, tokenizer)),
    )


def check_files(
    config: RunConfig, *, asks_store: bool = True, read_data: ReadData = read_corpora
) -> Preflight:
    """Check tokenizer, data, run folder and ``checkpoint.url``.

    Args:
        config: Checked configuration.
        asks_store: Ask the store of ``checkpoint.url``. If not, another rank does, and nothing is
            said about resuming where the store might say something else.
        read_data: Checks the training data; a task has its own.

    Raises:
        DataError: Tokenizer or corpus is missing, damaged or does not fit.
        CheckpointError: Checkpoints and checkpoint.resume contradict each other, or the run was
            trained on other rows.
        ConfigError: The run folder cannot be written or belongs to another configuration, or a
            record cannot be made.
    """
    check_records(config)
    tokenizer = _load_tokenizer(config)
    data = read_data(config, tokenizer)
    remote = check_store(config) if asks_store else None
    is_open = config.checkpoint.url is not None and not asks_store
    newest_step = check_run_folder(config, remote=remote, is_open=is_open)
    if newest_step is not None:
        _check_data(config, data.identity, remote)
        for corpus in data.corpora:
            prefix = config.data.corpora[corpus.name].prefix
            manifest = read_corpus_manifest(prefix)
            if manifest is not None:
                spot_check(prefix, manifest)
    return Preflight(
        data.corpora,
        newest_step,
        fetched_from=None if remote is None else remote.url,
        warnings=data.warnings,
    )


def check_run_folder(
    config: RunConfig, *, remote: RemoteCheckpoint | None = None, is_open: bool = False
) -> int | None:
    """Check that the run can write its folder and resume from its checkpoints.

    Args:
        config: Checked configuration.
        remote: Checkpoint on a store that the run would fetch.
        is_open: It is not known if there is one; then only the folder itself is checked.

    Returns:
        Step of the newest checkpoint; None if the run starts from step 0.

    Raises:
        CheckpointError: Checkpoints and checkpoint.resume contradict each other, all checkpoints
            are damaged, or there is no room for those to come.
        ConfigError: The folder belongs to another configuration.
        FileError: It cannot be written.
    """
    ensure_writable(config.run_dir, key="paths.runs")
    folder = config.run_dir / CHECKPOINTS
    if config.checkpoint.interval > 0:
        ensure_writable(folder, key="paths.runs")  # the first save may be hours away
        check_room(config, folder)
    if is_open:
        return None
    if remote is not None:
        rows_read = remote.step * config.batch.global_batch_size
        skipped = passed_over(remote.manifest.extra)
        check_same_config(config, newest=remote.url, rows_read=rows_read, skipped=skipped)
        return remote.step
    steps = list_steps(folder)
    _check_resume(config, folder, steps)
    if not steps:
        if config.checkpoint.step is not None:
            list_candidates(folder, config.checkpoint.step)
        if config.checkpoint.resume is not Resume.never and (names := damaged_names(folder)):
            raise all_damaged(folder, names, fix="start a new run with run.name=<new>")
        if config.run.init_from is not None:
            _check_origin(config, Path(config.run.init_from))
        return None
    step, path = _newest(list_candidates(folder, config.checkpoint.step))
    rows_read = step * config.batch.global_batch_size
    skipped = rows_passed_over(config.run_dir, config.checkpoint.step)
    check_same_config(config, newest=path.name, rows_read=rows_read, skipped=skipped)
    return step


def _check_resume(config: RunConfig, folder: Path, steps: Sequence[tuple[int, Path]]) -> None:
    """Compare ``checkpoint.resume`` with the checkpoints that there are.

    Raises:
        CheckpointError: They contradict each other.
    """
    if not steps and config.checkpoint.resume is Resume.must:
        raise CheckpointError(
            f"checkpoint.resume=must, but {folder} has no checkpoint.\n"
            "  Check run.name and paths.runs, or start with checkpoint.resume=auto.",
            key="checkpoint.resume",
            value="must",
            fix="checkpoint.resume=auto",
        )
    if steps and config.checkpoint.resume is Resume.never:
        raise CheckpointError(
            f"checkpoint.resume=never, but {folder} has checkpoints up to {steps[0][1].name}.\n"
            "  Set another run.name, or continue with checkpoint.resume=auto.",
            key="checkpoint.resume",
            value="never",
            fix="checkpoint.resume=auto",
        )


def _newest(steps: Sequence[tuple[int, Path]]) -> tuple[int, Path]:
    """Return the newest checkpoint with an undamaged manifest, else the newest one."""
    for step, path in steps:
        try:
            read_manifest(path)
        except DamagedCheckpointError:
            continue
        return step, path
    return steps[0]


def rows_passed_over(run_dir: Path, step: int | None = None) -> list[str]:
    """Return the ranges of rows, as first-last, that rewinds of a run have passed over so far.

    Args:
        run_dir: The run's folder.
        step: Checkpoint that it goes back to; None: the newest.
    """
    for _, path in list_candidates(run_dir / CHECKPOINTS, step):
        try:
            return passed_over(read_manifest(path).extra)
        except DamagedCheckpointError:
            continue  # training would use the one before it
    return []


def no_origin(path: Path) -> CheckpointError:
    """Build the error for a ``run.init_from`` without a checkpoint."""
    return CheckpointError(
        f"run.init_from={path} holds no usable checkpoint.\nName a run folder (with {CHECKPOINTS}/"
        f"step_…) or one checkpoint's folder (with {MANIFEST_NAME}).",
        key="run.init_from",
        value=str(path),
        fix="run.init_from=runs/<run>",
    )


def _check_origin(config: RunConfig, path: Path) -> None:
    """Check that ``run.init_from`` names a run or checkpoint of this model; ranks read it later.

    Raises:
        CheckpointError: There is no checkpoint, or it is of another model.
        ConfigError: The run's configuration is needed and cannot be read.
    """
    is_checkpoint = is_file(path / MANIFEST_NAME)
    if config.run.init_with is InitWith.architecture:
        fit_architecture(config, (path.parents[1] if is_checkpoint else path) / CONFIG_FILE)
        return
    if not is_checkpoint and not list_steps(path / CHECKPOINTS):
        raise no_origin(path)
    newest = path if is_checkpoint else list_steps(path / CHECKPOINTS)[0][1]
    try:
        manifest = read_manifest(newest)
    except DamagedCheckpointError:
        return  # training would use the one before it
    if config.run.init_with is InitWith.weights:
        fit_checkpoint(config, manifest, origin=newest)
    else:
        check_has_optimizer(newest, manifest)


def _warnings(config: RunConfig, source: RowSource, tokenizer: Tokenizer) -> Iterator[str]:
    for name, corpus in source.opened.items():
        yield from sampled_warnings(name, corpus, tokenizer.special)
    if tokenizer.special.has_task_masks and not config.tokenizer.task_masks:
        yield (
            "tokenizer.task_masks=false, but the vocabulary has [gMASK], which is used;"
            " tokenizer.task_masks=true says so"
        )
    for each in source.blend():
        if each.padding > MUCH_PADDING:
            yield (
                f"data.corpora.{each.corpus}: rows are {each.padding:.0%} padding, as all its text"
                " is shorter than one row; use more text, or a smaller batch.row_length"
            )


def _load_tokenizer(config: RunConfig) -> Tokenizer:
    try:
        return load_tokenizer(config.tokenizer)
    except DataError as error:
        stored = config.run_dir / TOKENIZER_FOLDER
        if not is_dir(stored):
            raise
        raise DataError(
            f"{error}\n  To use the copy in the run folder, set tokenizer.path={stored}",
            key=error.key,
            value=error.value,
            fix=f"tokenizer.path={stored}",
        ) from error


def _check_data(
    config: RunConfig, identity: Mapping[str, object], remote: RemoteCheckpoint | None
) -> None:
    """Compare the data with the newest checkpoint that records its data.

    A checkpoint's tensors are verified when they are read.
    """
    folder = config.run_dir / CHECKPOINTS
    if remote is not None:
        path, manifest = folder / step_name(remote.step), remote.manifest
        check_has_optimizer(path, manifest)
        check_same_position(config, path, manifest)
        check_same_rows(config, path, extra=manifest.extra, current=identity)
        return
    for _, path in list_candidates(folder, config.checkpoint.step):
        try:
            manifest = read_manifest(path)
        except DamagedCheckpointError:
            continue  # training would use the one before it
        check_has_optimizer(path, manifest)
        check_same_position(config, path, manifest)
        check_same_rows(config, path, extra=manifest.extra, current=identity)
        return
