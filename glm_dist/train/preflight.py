"""What can go wrong with files, found before any rank loads torch: data, tokenizer, run folder.

Everything here reads headers only, so it takes the same time for any amount of data.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from glm_dist.checkpoint.folders import list_steps
from glm_dist.config.load import load_config_file
from glm_dist.config.schema import DataConfig, LossNormalization, Resume, RunConfig
from glm_dist.data.corpus.open import open_corpus
from glm_dist.data.corpus.splits import split_documents
from glm_dist.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.files import ensure_writable, exists
from glm_dist.observe.run_folder import CONFIG_FILE

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints inside a run folder."""

ABSENT = "nothing"
"""Stands for the value of a key that only one of two configurations has."""

FREE_KEYS: tuple[str, ...] = (
    "config_version",
    "run.name",
    "run.steps",
    "parallel.",
    "zero.",
    "recompute.",
    "data.num_workers",
    "data.prefetch",
    "evaluation.",
    "checkpoint.",
    "observe.",
    "paths.",
    "tokenizer.path",
)
"""Keys that a continued run may change: they decide how and how long, never what is computed."""


@dataclass(frozen=True)
class CorpusFacts:
    """Size of one prepared corpus."""

    name: str
    num_documents: int
    num_tokens: int


@dataclass(frozen=True)
class Preflight:
    """What the files say about the job."""

    corpora: tuple[CorpusFacts, ...]
    newest_step: int | None
    """Step of the checkpoint the run would continue from; None for a new run."""


def check_files(config: RunConfig) -> Preflight:
    """Check tokenizer, corpora and run folder.

    Args:
        config: Checked configuration.

    Raises:
        DataError: Tokenizer or corpus is missing, damaged or does not fit.
        CheckpointError: Checkpoints and checkpoint.resume contradict each other.
        ConfigError: The run folder cannot be written or belongs to another configuration.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    corpora = tuple(
        _check_corpus(config.data, name, tokenizer=tokenizer) for name in config.data.corpora
    )
    return Preflight(corpora=corpora, newest_step=check_run_folder(config))


def check_run_folder(config: RunConfig) -> int | None:
    """Check that the run may write its folder and continue what is there.

    Args:
        config: Checked configuration.

    Returns:
        Step of the newest checkpoint, None if the run begins anew.

    Raises:
        CheckpointError: Checkpoints and checkpoint.resume contradict each other.
        ConfigError: The folder belongs to another configuration.
        FileError: It cannot be written.
    """
    ensure_writable(config.run_dir, key="paths.runs")
    folder = config.run_dir / CHECKPOINTS
    if config.checkpoint.interval > 0:
        ensure_writable(folder, key="paths.runs")  # the first save may be hours away
    steps = list_steps(folder)
    if not steps and config.checkpoint.resume is Resume.must:
        raise CheckpointError(
            key="checkpoint.resume",
            found="must",
            expected=f"a checkpoint in {folder}, where there is none",
            fix="check run.name and paths.runs, or begin with checkpoint.resume=auto",
        )
    if steps and config.checkpoint.resume is Resume.never:
        raise CheckpointError(
            key="checkpoint.resume",
            found="never",
            expected=f"no checkpoint in {folder}, where {steps[0][1].name} is the newest",
            fix="choose another run.name, or continue with checkpoint.resume=auto",
        )
    if not steps:
        return None
    rows_read = steps[0][0] * config.batch.global_batch_size
    _check_same_run(config, newest=steps[0][1].name, rows_read=rows_read)
    return steps[0][0]


def _check_corpus(data: DataConfig, name: str, *, tokenizer: Tokenizer) -> CorpusFacts:
    corpus = open_corpus(name, data.corpora[name].prefix, tokenizer=tokenizer)
    split_documents(
        corpus.num_documents,
        validation_share=data.validation_share,
        test_share=data.test_share,
        corpus=name,
    )
    return CorpusFacts(name, corpus.num_documents, corpus.num_tokens)


def _check_same_run(config: RunConfig, *, newest: str, rows_read: int) -> None:
    """Compare every value that changes the result with the configuration saved in the folder."""
    file = config.run_dir / CONFIG_FILE
    if not exists(file):
        return
    earlier = load_config_file(file)
    saved = dict(_values(earlier))
    free = FREE_KEYS
    has_same_past = earlier.data.stages_before(rows_read) == config.data.stages_before(rows_read)
    if config.loss.normalize_by is LossNormalization.global_tokens:
        free = (*free, "batch.micro_batch_size")
    current = dict(_values(config))
    changed = [
        key
        for key in sorted(saved.keys() | current.keys())
        if not key.startswith(free)
        and saved.get(key, ABSENT) != current.get(key, ABSENT)
        and not _is_moved_corpus(key, saved, current)
        and not (has_same_past and key.endswith((".stage_starts", ".stage_weights")))
    ]
    if changed:
        raise ConfigError(
            key=", ".join(changed),
            found=", ".join(_shown(current.get(key, ABSENT)) for key in changed),
            expected=f"{', '.join(_shown(saved.get(key, ABSENT)) for key in changed)} as in {file},"
            f" because the run continues from {newest}",
            fix="set them back, or begin another run with another run.name",
        )


def _is_moved_corpus(key: str, saved: Mapping[str, object], current: Mapping[str, object]) -> bool:
    """Whether only the place of a known corpus changed; its content is compared on resume."""
    is_prefix = key.startswith("data.corpora.") and key.endswith(".prefix")
    return is_prefix and key in saved and key in current


def _values(section: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Full keys and values of a configuration."""
    if dataclasses.is_dataclass(section):
        items = [(each.name, getattr(section, each.name)) for each in dataclasses.fields(section)]
    elif isinstance(section, dict):
        items = list(section.items())
    else:
        yield prefix.removesuffix("."), section
        return
    for name, value in items:
        yield from _values(value, f"{prefix}{name}.")


def _shown(value: object) -> str:
    """A value as it is typed."""
    return "null" if value is None else str(getattr(value, "name", value))
